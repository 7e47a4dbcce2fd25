"""Replays on real Kafka: what was asked for and nothing else, through every kind of death, by several processes, held and paced."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.inspect.control import write_switch
from pipeline.model.cluster import TopicPartition
from pipeline.model.control import Replay
from pipeline.model.errors import ConfigurationError, TopologyError
from pipeline.replay.audit import read_audit
from pipeline.replay.fetching import FETCH
from pipeline.replay.plan import PlanError
from pipeline.replay.results import read_results
from pipeline.replay.status import status_of
from tests.integration.harness import GROUP, Scene, until
from tests.integration.replays import Replays, check_history, origins
from tests.patience import PATIENCE

WINDOW = 500
"""Checked before a fetch is sent, so that much and one fetch more may be under way."""


@pytest.fixture
def replays(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Replays]:
    with Scene(kafka, topic_name, tmp_path, partitions=3) as scene:
        yield Replays(scene)


def test_all_that_was_chosen_is_written_once_with_results_and_an_audit_entry(replays: Replays) -> None:
    replays.prepare(3_000)
    plan = replays.plan()
    assert plan.preview is not None
    assert plan.preview["selected"] == 3_000
    tallies: list[Any] = []
    tally = replays.run(plan, progress=tallies.append)
    assert (tally.state, tally.done, dict(tally.counts)) == ("finished", 3_000, {"written": 3_000})
    assert tallies[-1].state == "finished"
    assert check_history(replays, plan, origins(replays.scene), 0) == 0
    ((_, entry),) = read_audit(replays.scene.client.cluster, replays.surroundings.audit, plan.plan_id)
    assert (entry.who, entry.why, entry.action, entry.plan_hash) == ("ann", "a test", "replay", plan.hash)
    assert entry.counts["selected"] == 3_000
    for message, delivery in replays.copies():
        assert message.partition() == delivery.origin_partition
        assert (delivery.attempt, delivery.hop, delivery.epoch, delivery.replay_count) == (0, 0, 0, 1)
    assert status_of(replays.surroundings, plan).state == "finished"


def test_running_a_finished_plan_again_does_nothing(replays: Replays) -> None:
    replays.prepare(50)
    plan = replays.plan()
    replays.run(plan)
    assert replays.run(plan).state == "finished"
    assert len(replays.copies()) == 50
    assert len(list(read_audit(replays.scene.client.cluster, replays.surroundings.audit, plan.plan_id))) == 1


DEATHS = [("audited", 1), *((stage, times) for stage in ("sent", "acknowledged", "recorded") for times in (1, 3))]


@pytest.mark.parametrize(("stage", "times"), DEATHS)
def test_killed_at_any_stage_nothing_is_lost_and_few_come_twice(replays: Replays, stage: str, times: int) -> None:
    replays.prepare(6_000)
    plan = replays.plan()
    replays.dies(plan, die_at=stage, die_after=times, window=WINDOW)
    until(
        "the dead member is gone",
        lambda: not replays.scene.admin.describe_group(replays.surroundings.group(plan.plan_id)).members,
    )
    assert status_of(replays.surroundings, plan).state in ("interrupted", "not started")
    tally = replays.run(plan, window=WINDOW)
    assert dict(tally.counts) == {"written": 6_000}
    twice = check_history(replays, plan, origins(replays.scene), WINDOW + FETCH)
    if stage == "audited":
        assert twice == 0
    entries = list(read_audit(replays.scene.client.cluster, replays.surroundings.audit, plan.plan_id))
    assert len(entries) == 2, "both runs are on record"


def test_what_has_its_result_is_not_written_again(replays: Replays) -> None:
    """Killed when results are acknowledged and the commit is not: the results say what was written."""
    scene = replays.scene
    scene.partitions = 1
    replays.prepare(1_500, keys=3)
    plan = replays.plan()
    replays.dies(plan, die_at="recorded", die_after=1)
    written = len(replays.copies())
    with_result = len(replays.results(plan))
    assert 0 < with_result <= written
    until(
        "the dead member is gone",
        lambda: not scene.admin.describe_group(replays.surroundings.group(plan.plan_id)).members,
    )
    tally = replays.run(plan)
    assert dict(tally.counts) == {"written": 1_500}
    twice = check_history(replays, plan, origins(scene), written - with_result)
    assert twice == written - with_result


def test_two_processes_one_killed_the_other_takes_over(replays: Replays) -> None:
    replays.prepare(6_000)
    plan = replays.plan(rate=250.0)
    first = replays.start(plan, announce=str(replays.scene.folder / "first"), window=WINDOW)
    until("the first sends", (replays.scene.folder / "first").exists)
    second = replays.start(plan, announce=str(replays.scene.folder / "second"), join=True, window=WINDOW)
    until("the second sends", (replays.scene.folder / "second").exists)
    first.send_signal(signal.SIGKILL)
    first.wait(10 * PATIENCE)
    assert first.stdout is not None
    first.communicate()
    said = replays.finish(second)
    assert said == {"state": "finished", "counts": {"written": 6_000}}
    check_history(replays, plan, origins(replays.scene), WINDOW + FETCH)


def test_a_second_run_is_refused_with_the_name_of_the_first(replays: Replays) -> None:
    replays.prepare(3_000)
    plan = replays.plan(rate=500.0)
    first = replays.start(plan, announce=str(replays.scene.folder / "first"))
    until("the first sends", (replays.scene.folder / "first").exists)
    with pytest.raises(ConfigurationError, match=r"is being run by pipeline-replay on .*--join"):
        replays.run(plan)
    assert replays.finish(first)["state"] == "finished"
    check_history(replays, plan, origins(replays.scene), 0)


def test_two_that_start_at_once_one_goes_on(replays: Replays) -> None:
    replays.prepare(3_000)
    plan = replays.plan(rate=1_000.0)
    both = [replays.start(plan), replays.start(plan)]
    codes = []
    for process in both:
        _, error = process.communicate(timeout=60 * PATIENCE)
        codes.append(process.returncode)
        assert process.returncode == 0 or b"is being run by" in error, error.decode()[-1_000:]
    assert 0 in codes
    check_history(replays, plan, origins(replays.scene), 0)


def test_pause_holds_it_and_resume_lets_it_go_on(replays: Replays) -> None:
    replays.prepare(4_000)
    plan = replays.plan(rate=1_000.0)
    cluster, control = replays.scene.client.cluster, replays.surroundings.control
    process = replays.start(plan, announce=str(replays.scene.folder / "sent"))
    until("it sends", (replays.scene.folder / "sent").exists)
    write_switch(cluster, control, Replay(plan.plan_id, "paused"), True)
    lane = replays.scene.lane("replay")

    def still() -> bool:
        before = replays.scene.count(lane)
        time.sleep(1.0)  # what is watched for is that nothing happens
        return replays.scene.count(lane) == before

    until("it stands still", still)
    held = replays.scene.count(lane)
    assert held < 4_000
    assert status_of(replays.surroundings, plan).state == "paused"
    assert process.poll() is None
    write_switch(cluster, control, Replay(plan.plan_id, "paused"), False)
    assert replays.finish(process)["state"] == "finished"
    check_history(replays, plan, origins(replays.scene), 0)


def test_cancel_ends_it_for_good(replays: Replays) -> None:
    replays.prepare(4_000)
    plan = replays.plan(rate=500.0)
    process = replays.start(plan, announce=str(replays.scene.folder / "sent"))
    until("it sends", (replays.scene.folder / "sent").exists)
    switch = Replay(plan.plan_id, "cancelled", who="bob")
    write_switch(replays.scene.client.cluster, replays.surroundings.control, switch, True)
    said = replays.finish(process)
    assert said["state"] == "cancelled"
    assert said["counts"]["written"] == len(replays.copies()) == len(replays.results(plan)) < 4_000
    assert status_of(replays.surroundings, plan).state == "cancelled"
    with pytest.raises(PlanError, match="cancelled by bob"):
        replays.run(plan)


def test_a_stop_loses_and_repeats_nothing(replays: Replays) -> None:
    replays.prepare(4_000)
    plan = replays.plan(rate=2_000.0)

    def stop_soon(executor: Any) -> None:
        threading.Timer(1.5, executor.stop).start()

    first = replays.run(plan, started=stop_soon)
    assert first.state == "stopped"
    assert 0 < first.done < 4_000
    assert status_of(replays.surroundings, plan).state == "interrupted"
    assert replays.run(plan).done == 4_000
    assert check_history(replays, plan, origins(replays.scene), 0) == 0


def test_the_rate_is_kept_over_all(replays: Replays) -> None:
    """By two processes with a half of the records each. Held until both are at work, so that no start is measured."""
    scene, records, rate = replays.scene, 600, 150.0
    scene.partitions = 2
    replays.prepare(0)
    for partition in range(2):
        scene.publish_many([(f"k{partition}{n % 5}", {"n": n}) for n in range(records // 2)], partition=partition)
    replays.all_processed()
    plan = replays.plan(rate=rate)
    cluster, control = scene.client.cluster, replays.surroundings.control
    write_switch(cluster, control, Replay(plan.plan_id, "paused"), True)
    processes = [replays.start(plan, join=True) for _ in range(2)]
    group = replays.surroundings.group(plan.plan_id)
    until("both are at work", lambda: [len(m.partitions) for m in scene.admin.describe_group(group).members] == [1, 1])
    assert replays.copies() == []
    write_switch(cluster, control, Replay(plan.plan_id, "paused"), False)
    assert [replays.finish(process)["state"] for process in processes] == ["finished", "finished"]
    check_history(replays, plan, origins(scene), 0)
    times = [message.timestamp()[1] for message, _ in replays.copies()]
    assert 0.85 * records / rate < (max(times) - min(times)) / 1_000 < 3 * PATIENCE * records / rate


def test_so_many_first_and_the_rest_later(replays: Replays) -> None:
    replays.prepare(2_000)
    plan = replays.plan()
    first = replays.run(plan, stop_after=10)
    assert (first.state, first.done) == ("stopped", 10)
    assert len(replays.copies()) == 10
    assert replays.run(plan).done == 2_000
    assert check_history(replays, plan, origins(replays.scene), 0) == 0


def test_only_what_the_group_has_processed_is_replayed_into_its_lane(replays: Replays) -> None:
    replays.prepare(300)
    more = replays.scene.publish_many((f"k{n}", {"n": n}) for n in range(60))
    plan = replays.plan()
    assert plan.preview is not None
    assert (plan.preview["selected"], plan.preview["not_processed_yet"]) == (300, 60)
    replays.run(plan)
    check_history(replays, plan, origins(replays.scene) - set(more), 0)


def test_a_loop_of_replays_ends(replays: Replays) -> None:
    replays.prepare(40)
    source = replays.scene.topic()
    made = 40
    for count in range(1, 4):
        plan = replays.plan(to_topic=source, replays_max=2)
        tally = replays.run(plan)
        capped = tally.counts.get("loop_capped", 0)
        assert tally.counts.get("written", 0) + capped == made
        assert (capped > 0) is (count == 3)
        made = replays.scene.count(source)
    assert replays.run(replays.plan(replays.scene.topic(), to_topic=source, replays_max=1)).counts["loop_capped"] > 0


def test_a_selection_by_key_time_and_filter(replays: Replays) -> None:
    replays.prepare(500)
    everything = {
        (m.partition(), m.offset()): json.loads(m.value() or b"") for m in replays.scene.read(replays.scene.topic())
    }
    keyed = replays.plan(keys=(b"k3",), where="value.n < 400")
    replays.run(keyed)
    wanted = {origin for origin, value in everything.items() if value["n"] % 10 == 3 and value["n"] < 400}
    check_history(replays, keyed, wanted, 0)
    assert status_of(replays.surroundings, keyed).done == len(wanted)
    limited = replays.plan(limit=77)
    assert limited.preview is not None
    assert limited.preview["selected"] == 77
    assert replays.run(limited).done == 77


def test_offsets_that_never_come_do_not_hold_it_up(replays: Replays) -> None:
    """A transaction's marker ends each partition."""
    from confluent_kafka import Producer

    scene = replays.scene
    replays.prepare(90)
    producer = Producer({"bootstrap.servers": scene.bootstrap, "transactional.id": scene.prefix + "tx"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition in range(3):
        producer.produce(scene.topic(), b"{}", b"k", partition)
    assert producer.flush(30) == 0, "or the abort drops them, and nothing is in the log"
    producer.abort_transaction(30)
    replays.all_processed()
    plan = replays.plan()
    assert replays.run(plan).done == 90
    check_history(replays, plan, origins(scene), 0)


# -- what is asked wrongly


def test_what_is_not_there_is_told_in_a_sentence(replays: Replays) -> None:
    replays.prepare(30)
    scene = replays.scene
    end = scene.count(scene.topic())
    with pytest.raises(ConfigurationError, match="topic 'nothing' does not exist"):
        replays.plan("nothing")
    with pytest.raises(ConfigurationError, match=r"group 'nobody' has no lanes"):
        replays.plan(group="nobody")
    with pytest.raises(ConfigurationError, match="has no partition 9: its 3 partitions count from 0"):
        replays.plan(from_offsets={9: 0})
    with pytest.raises(ConfigurationError, match=r"offset 999 of partition 1 is out of range: .* holds 0 to \d+ there"):
        replays.plan(from_offsets={1: 999})
    with pytest.raises(ConfigurationError, match="is not in the declared topology"):
        replays.plan(to_topic="elsewhere")
    with pytest.raises(ConfigurationError, match="is a lane of group"):
        replays.plan(to_topic=scene.lane("dlq"))
    with pytest.raises(ConfigurationError, match="is a lane of group"):
        replays.plan(scene.lane("replay"))
    with pytest.raises(ConfigurationError, match="say where to"):
        replays.plan(group="")
    with pytest.raises(ConfigurationError, match=r"\^"):
        replays.plan(where="attempt >=")
    assert scene.count(scene.topic()) == end
    assert replays.copies() == []


def test_a_plan_over_a_topic_that_changed_since_is_refused(replays: Replays) -> None:
    replays.prepare(300)
    scene = replays.scene
    plan = replays.plan()
    scene.admin.delete_records({TopicPartition(scene.topic(), 0): 5})
    with pytest.raises(PlanError, match=r"offsets 0 to 4 of .* were deleted by retention"):
        replays.run(plan)
    shorter = replays.plan()
    scene.admin.add_partitions(scene.topic(), 4)
    with pytest.raises(PlanError, match="has 4 partitions now and had 3"):
        replays.run(shorter)
    scene.admin.delete_topics([scene.topic()])
    until("the topic is gone", lambda: scene.topic() not in scene.admin.topic_names())
    with pytest.raises(PlanError, match="does not exist any more"):
        replays.run(shorter)
    assert replays.copies() == []


def test_without_audit_topic_or_target_nothing_is_sent(replays: Replays) -> None:
    replays.prepare(30)
    scene = replays.scene
    plan = replays.plan()
    scene.admin.delete_topics([scene.lane("replay")])
    until("the lane is gone", lambda: scene.lane("replay") not in scene.admin.topic_names())
    with pytest.raises(ConfigurationError, match=r"target .* does not exist: run `pipeline topics apply`"):
        replays.run(plan)
    scene.admin.delete_topics([replays.surroundings.audit])
    until("the audit is gone", lambda: replays.surroundings.audit not in scene.admin.topic_names())
    with pytest.raises(TopologyError, match="nothing was done: run `pipeline topics apply`"):
        replays.run(plan)
    assert list(read_results(scene.client.cluster, replays.surroundings.results)) == []
    assert scene.admin.group_positions(scene.prefix + GROUP)
