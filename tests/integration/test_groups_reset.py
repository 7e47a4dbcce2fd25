"""`pipeline groups reset` on real Kafka: every mode, who is refused, what waits in lanes, and a zombie that must stay dead."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli.main import app as command
from pipeline.core.progress import decode
from pipeline.model.cluster import TopicPartition
from pipeline.model.headers import DeliveryHeaders, encode
from pipeline.model.topics import AUDIT_TOPIC
from pipeline.replay.audit import read_audit
from tests.integration.harness import GROUP, SESSION_S, Scene, make_app, running, until_async

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]
Cli = Callable[..., Result]


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


@pytest.fixture
def cli(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PIPELINE_BROKER", scene.bootstrap)
    monkeypatch.setenv("PIPELINE_PREFIX", scene.prefix)
    runner = CliRunner()

    def run(*arguments: str, group: str = GROUP, code: int = 0) -> Result:
        result = runner.invoke(command, ["groups", "reset", group, *arguments])
        assert result.exit_code == code, result.output
        return result

    return run


def did(cli: Cli, *arguments: str, **more: Any) -> Any:
    """Executed, and what it said as JSON."""
    shown = cli("--topic", "events", *arguments, "--execute", "--reason", "a test", "--json", **more)
    return json.loads(shown.stdout)


def work(scene: Scene, spec: dict[str, Any], done: int) -> None:
    """A worker of this process, until so many runs of handlers have ended well in all and everything is committed."""

    async def session() -> None:
        app = make_app(spec)
        async with running(app, scene.partitions):
            await until_async(f"{done} are done", lambda: len(scene.ledger.done()) >= done, 60)
            await until_async("all is committed", scene.settled, 30)

    asyncio.run(session())
    assert len(scene.ledger.done()) == done, "more ran than should have"


def stands(scene: Scene) -> list[int]:
    return [scene.progress(p).offset for p in range(scene.partitions)]


def test_every_mode_moves_the_group_takes_the_next_epoch_and_is_audited(scene: Scene, cli: Cli, tmp_path: Path) -> None:
    spec = scene.spec(tiers=("1s",))
    scene.make_topics(make_app(spec))
    for partition, count in ((0, 6), (1, 4)):
        scene.publish_many([(None, {"n": n}) for n in range(count)], partition=partition)
    work(scene, spec, 10)
    time.sleep(0.05)  # a gap between the times of records, not a wait for anything
    between = time.time()
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(between)) + f".{int(between * 1000) % 1000:03d}Z"
    for partition in (0, 1):
        scene.publish_many([(None, {"late": n}) for n in range(3)], partition=partition)
    work(scene, spec, 16)
    scene.admin.delete_records({TopicPartition(scene.topic(), 0): 1})
    before = [scene.progress(p) for p in (0, 1)]
    assert [p.offset for p in before] == [9, 7]
    assert all(p.epoch == 2 and set(p.fences) == {"1s", "replay"} for p in before)

    dry = json.loads(cli("--topic", "events", "--to-earliest", "--json").stdout)
    assert (dry["executed"], dry["again"], [r["new"] for r in dry["rows"]]) == (False, 15, [1, 0])
    assert [scene.progress(p) for p in (0, 1)] == before, "a dry run changes nothing"

    copy = tmp_path / "was.csv"
    epoch = 2
    for arguments, new in (
        (("--to-current", "--export", str(copy)), [9, 7]),
        (("--to-earliest",), [1, 0]),
        (("--to-latest",), [9, 7]),
        (("--to-offset", "3"), [3, 3]),
        (("--to-offset", "5", "--to-offset", "1:2"), [5, 2]),
        (("--shift-by", "-1"), [4, 1]),
        (("--shift-by", "0"), [4, 1]),
        (("--shift-by", "4"), [8, 5]),
        (("--shift-by", "-100"), [1, 0]),
        (("--from-file", str(copy)), [9, 7]),
        (("--to-datetime", iso), [6, 4]),
        (("--by-duration", "PT0.001S"), [9, 7]),
        (("--by-duration", "2h"), [1, 0]),
    ):
        told = did(cli, *arguments)
        epoch += 1
        assert stands(scene) == new == [row["new"] for row in told["rows"]], arguments
        assert [scene.progress(p).epoch for p in (0, 1)] == [epoch, epoch], arguments
        assert all(set(scene.progress(p).fences) == {"1s", "replay"} for p in (0, 1))
    assert copy.read_text() == f"{scene.topic()},0,9\n{scene.topic()},1,7\n", "as Kafka's own tool writes it"
    did(cli, "--to-latest", "--partition", "1")
    assert stands(scene) == [1, 7]

    entries = [entry for _, entry in read_audit(scene.client.cluster, scene.prefix + AUDIT_TOPIC)]
    assert len(entries) == 14
    assert {entry.action for entry in entries} == {"reset"}
    assert (entries[1].why, entries[1].counts["again"]) == ("a test", 15)
    assert "--to-offset 5 --to-offset 1:2 --lanes keep" in entries[4].command
    assert scene.prefix + GROUP in entries[1].target

    work(scene, spec, 16 + 8)  # partition 0 from offset 1 again, partition 1 not at all
    assert scene.progress(0).epoch > epoch


def test_what_cannot_be_is_one_sentence_and_changes_nothing(scene: Scene, cli: Cli, tmp_path: Path) -> None:
    spec = scene.spec(tiers=("1s",))
    scene.make_topics(make_app(spec))
    scene.publish_many([(None, {}) for _ in range(5)], partition=0)
    work(scene, spec, 5)
    before = scene.committed()
    (bad := tmp_path / "bad.csv").write_text("nonsense\n")
    (other := tmp_path / "other.csv").write_text("elsewhere,0,1\n")
    for arguments, words in (
        ((), "say with one option where to"),
        (("--to-latest", "--to-earliest"), "not --to-earliest and --to-latest"),
        (("--to-offset", "6"), "takes 0 to 5"),
        (("--to-offset", "0:9"), "takes 0 to 5"),
        (("--to-offset", "2:0"), "0 to 1"),
        (("--to-latest", "--partition", "7"), "partition 7"),
        (("--to-datetime", "2999-01-01"), "in the future"),
        (("--to-datetime", "soon"), "ISO 8601"),
        (("--by-duration", "a while"), "--by-duration"),
        (("--from-file", str(bad)), "line 1"),
        (("--from-file", str(other)), "says nothing of topic"),
        (("--from-file", str(tmp_path / "none.csv")), "can't be read"),
        (("--to-latest", "--lanes", "away"), "--lanes"),
        (("--to-latest", "--execute"), "--reason is needed"),
    ):
        found = cli("--topic", "events", *arguments, code=2)
        assert words in found.stderr, found.stderr
        assert found.stderr.count("\n") == 1
    assert "does not exist" in cli("--topic", "nothing", "--to-latest", code=2).stderr
    assert "groups attach" in cli("--topic", "events", "--to-latest", group="nobody", code=2).stderr
    assert "is a lane of group" in cli("--topic", scene.lane("retry.1s"), "--to-latest", code=2).stderr
    scene.admin.delete_topics([scene.prefix + AUDIT_TOPIC])
    found = cli("--topic", "events", "--to-earliest", "--execute", "--reason", "x", code=2)
    assert "topics apply" in found.stderr
    assert scene.committed() == before


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_live_group_is_refused_by_name(scene: Scene, cli: Cli, protocol: str) -> None:
    spec = scene.spec(settings={"group_protocol": protocol}, tiers=("1s",))
    scene.make_topics(make_app(spec))
    process = scene.start_and_wait(spec)
    scene.publish("k", {})
    scene.until("it is committed", scene.settled)
    (member,) = scene.admin.describe_group(scene.prefix + GROUP).members
    for more in ((), ("--execute", "--reason", "x")):
        found = cli("--topic", "events", "--to-earliest", *more, code=1)
        for word in (member.member_id, member.client_id, member.host, "1 member,"):
            assert word in found.stderr, found.stderr
    assert list(read_audit(scene.client.cluster, scene.prefix + AUDIT_TOPIC)) == []
    assert process.stop() == 0
    did(cli, "--to-earliest")
    assert stands(scene) == [0, 0]


def test_what_waits_in_lanes_stays_or_is_dropped(scene: Scene, cli: Cli) -> None:
    spec = scene.spec(tiers=("4s",), attempts=2)
    scene.make_topics(make_app(spec))

    async def park() -> None:
        async with running(make_app(spec), scene.partitions):
            scene.publish_many([("k", {"fails": 1}), ("k", {}), ("free", {})], partition=0)
            await until_async("two wait", lambda: scene.count(scene.lane("retry.4s")) == 2)
            await until_async("the free one is done", lambda: len(scene.ledger.done()) == 1)
            await until_async("all is committed", scene.settled)

    asyncio.run(park())
    told = did(cli, "--to-earliest")
    assert (told["waiting"], told["again"]) == (2, 3)
    assert "2 records wait in the lanes and stay" in cli("--topic", "events", "--to-latest").stderr
    work(scene, spec, 1 + 3)
    runs = Counter(offset for _, offset in scene.ledger.done())
    assert runs == {0: 1, 1: 1, 2: 2}, "the parked ones ran once, from their lane; the free one again"

    asyncio.run(park_again(scene, spec))
    dry = cli("--topic", "events", "--to-current", "--lanes", "to-latest")
    assert "2 records that wait in the lanes would be DROPPED" in dry.stderr
    told = did(cli, "--to-current", "--lanes", "to-latest")
    assert told["waiting"] == 2
    (_, entry) = list(read_audit(scene.client.cluster, scene.prefix + AUDIT_TOPIC))[-1]
    assert entry.counts["dropped"] == 2
    done = len(scene.ledger.done())
    more = scene.publish_many([("k", {}), ("other", {})], partition=0)
    work(scene, spec, done + 2)
    assert set(scene.ledger.done()[done:]) == set(more), "what was dropped neither ran nor blocked its key"


async def park_again(scene: Scene, spec: dict[str, Any]) -> None:
    before = scene.count(scene.lane("retry.4s"))
    async with running(make_app(spec), scene.partitions):
        scene.publish_many([("k", {"fails": 1}), ("k", {})], partition=0)
        await until_async("two more wait", lambda: scene.count(scene.lane("retry.4s")) == before + 2)
        await until_async("all is committed", scene.settled)


def test_moving_on_keeps_what_is_known_to_be_done_beyond(scene: Scene, cli: Cli) -> None:
    """Two stalled records and 20 done ones behind them: skipping the first must not run the 20 again; moving back does."""
    gate = scene.folder / "gate"
    spec = scene.spec(tiers=("1s",), order="none", flow={"drain_timeout_ms": 300})
    scene.make_topics(make_app(spec))
    process = scene.start_and_wait(spec)
    stalled = {"gate": str(gate)}
    scene.publish_many([(None, stalled), (None, stalled), *((None, {}) for _ in range(20))], partition=0)
    scene.until(
        "20 are done beyond the commit", lambda: len(scene.progress(0).open) == 2 and scene.progress(0).end == 22
    )
    assert process.stop() == 0
    gate.touch()
    told = did(cli, "--shift-by", "1", "--partition", "0")
    assert (told["again"], told["skipped"]) == (0, 1)
    work(scene, spec, 21)
    assert (0, 0) not in scene.ledger.done()
    told = did(cli, "--to-earliest", "--partition", "0")
    assert told["again"] == 22
    work(scene, spec, 21 + 22)


def test_a_zombie_of_before_the_reset_stays_dead(scene: Scene, cli: Cli) -> None:
    """Stopped past its session with its handlers inside; the group is moved back; a new owner does everything and leaves; then the
    zombie wakes: what it hands off, from the past (here also by our own hand, as it may hear of its loss first), is found by the next
    owner, itself. With plain offsets the owner would have taken the zombie's own epoch, and the copies would run."""
    gate = scene.folder / "gate"
    spec = scene.spec(tiers=("500ms",), attempts=3)
    scene.make_topics(make_app(spec))
    zombie = scene.start_and_wait(spec)
    scene.publish_many([(f"k{n}", {"gate": str(gate), "fails": 1}) for n in range(20)])
    scene.until("20 are in its hands", lambda: len(scene.ledger.marks("start")) == 20)
    assert {scene.progress(p).epoch for p in (0, 1)} == {1}
    zombie.send(signal.SIGSTOP)
    scene.until(
        "the group is empty", lambda: not scene.admin.describe_group(scene.prefix + GROUP).members, SESSION_S + 20
    )
    did(cli, "--to-offset", "0")
    assert {scene.progress(p).epoch for p in (0, 1)} == {2}
    owner = scene.start_and_wait(spec)
    gate.touch()
    scene.until("the owner has done all", lambda: len(set(scene.ledger.done())) == 20, 60)
    scene.until("all is committed", scene.settled)
    assert owner.stop() == 0
    for partition, offset in scene.published[:20]:
        write_copy(scene, "500ms", partition, offset, epoch=1)
    zombie.send(signal.SIGCONT)
    last = scene.publish_many([(f"k{n}", {}) for n in range(20)])
    scene.until("what comes after is done", lambda: set(last) <= set(scene.ledger.done()), 60)
    scene.until("the lane is read to its end", lambda: lane_is_read(scene, scene.lane("retry.500ms")), 30)
    runs = Counter((m.partition, m.offset) for m in scene.ledger.marks("done"))
    assert max(runs.values()) == 1, "a copy that the zombie wrote was run"
    assert zombie.stop() == 0


def write_copy(scene: Scene, tier: str, partition: int, origin: int, epoch: int) -> None:
    """What a worker of that epoch writes when a record fails for the first time."""
    headers = DeliveryHeaders(1, 1, epoch, scene.topic(), partition, origin, 1, scene.prefix + GROUP)
    lane = scene.lane(f"retry.{tier}").removeprefix(scene.prefix)
    scene.publish(f"k{origin}", {"n": origin}, encode([], headers), partition, topic=lane)


def lane_is_read(scene: Scene, lane: str) -> bool:
    places = [TopicPartition(lane, p) for p in range(scene.partitions)]
    held = scene.committed()
    ends = scene.admin.end_offsets(places)
    return all(ends[place] == (held[place].offset if place in held else 0) for place in places)


def test_copies_that_zombies_left_below_the_new_fence_are_settled_by_the_reset(scene: Scene, cli: Cli) -> None:
    """An old zombie's copy lies past the owner's fence when the reset comes. New fences lie past it: it must be settled now. And
    what it writes after the reset, before anybody owns the partition, lies past the new fence with an epoch that is too low."""
    spec = scene.spec(tiers=("1s",), attempts=3)
    scene.make_topics(make_app(spec))
    scene.publish_many([("k", {"n": n}) for n in range(3)], partition=0)
    work(scene, spec, 3)
    did(cli, "--to-current")  # another term, so that epoch 1 is an old one
    place = TopicPartition(scene.lane("retry.1s"), 0)
    write_copy(scene, "1s", 0, 0, epoch=1)
    assert decode(0, scene.committed()[TopicPartition(scene.topic(), 0)].metadata).fences["1s"] == 0
    did(cli, "--to-latest")
    assert scene.committed()[place].offset == 1, "settled in the lane's commit"
    assert scene.progress(0).fences["1s"] == 1
    write_copy(scene, "1s", 0, 1, epoch=1)
    write_copy(scene, "1s", 0, 2, epoch=2)  # of the last owner before the reset
    more = scene.publish_many([("k", {"more": n}) for n in range(3)], partition=0)
    work(scene, spec, 3 + 3)
    assert set(scene.ledger.done()[3:]) == set(more)


def test_a_group_of_others_making_gets_plain_offsets(scene: Scene, cli: Cli) -> None:
    from confluent_kafka import Consumer
    from confluent_kafka import TopicPartition as Named

    scene.make_topics(make_app(scene.spec()))
    scene.publish_many([(None, {}) for _ in range(8)], partition=0)
    consumer = Consumer({"bootstrap.servers": scene.bootstrap, "group.id": f"{scene.prefix}theirs"})
    consumer.commit(offsets=[Named(scene.topic(), 0, 7, "their text")], asynchronous=False)
    consumer.close()
    told = did(cli, "--shift-by", "-2", "--partition", "0", group="theirs")
    assert (told["again"], told["skipped"]) == (2, 0)
    position = scene.admin.group_positions(f"{scene.prefix}theirs")[TopicPartition(scene.topic(), 0)]
    assert (position.offset, position.metadata) == (5, "")
    assert "others' making" in cli("--topic", "events", "--to-earliest", group="theirs").stderr


def test_a_lane_that_lost_what_waited_goes_on_after_a_reset(scene: Scene, cli: Cli) -> None:
    """A worker refuses such a partition and names this command: it must be the cure."""
    spec = scene.spec(tiers=("1h",), attempts=3)
    scene.make_topics(make_app(spec))

    async def park() -> None:
        async with running(make_app(spec), scene.partitions):
            scene.publish_many([("k", {"fails": 1}), ("k", {})], partition=0)
            await until_async("two wait", lambda: scene.count(scene.lane("retry.1h")) == 2)
            await until_async("all is committed", scene.settled)

    asyncio.run(park())
    scene.admin.delete_records({TopicPartition(scene.lane("retry.1h"), 0): 1})

    async def refused() -> str:
        app = make_app(spec)
        async with running(app):
            assert app.worker
            engine = app.worker.running[0].engine
            await until_async("partition 0 is refused", lambda: 0 in engine.refused)
            return str(engine.refused[0])

    sentence = asyncio.run(refused())
    assert f"pipeline groups reset {scene.prefix}g --topic {scene.topic()} --partition 0 --to-current" in sentence
    did(cli, "--to-current", "--partition", "0")
    more = scene.publish("free", {}, partition=0)
    work(scene, spec, 1)
    assert scene.ledger.done() == [more]
