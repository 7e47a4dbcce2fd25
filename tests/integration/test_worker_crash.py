"""Workers that die or fall silent, on real Kafka: processes are SIGKILLed and SIGSTOPped while a ledger tells what ran."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.headers import decode
from tests.integration.harness import SESSION_S, Scene, verdict

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]
TIERS = ("800ms", "1600ms")
TIERS_S = (0.8, 1.6)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=4) as scene:
        yield scene


def topics_for(scene: Scene, spec: dict[str, Any]) -> None:
    from tests.integration.harness import make_app

    scene.make_topics(make_app(spec))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_killed_with_1000_in_flight_loses_nothing_and_reruns_only_what_was_not_done(
    scene: Scene, protocol: str
) -> None:
    gate = scene.folder / "gate"
    spec = scene.spec(settings={"group_protocol": protocol}, tiers=TIERS, concurrency=1200)
    topics_for(scene, spec)
    records: list[tuple[str, Any]] = []
    for n in range(1000):
        records.append((f"slow-{n}", {"n": n, "gate": str(gate)}))
        if n % 2:
            records.append((f"quick-{n}", {"n": n}))
        if n % 10 == 0:
            records.append((f"slow-{n - n % 20}", {"n": n, "behind": True}))
    scene.publish_many(records)
    first = scene.start_and_wait(spec)
    scene.until("1,000 are in flight", lambda: len(scene.ledger.marks("start")) >= 1500, 60)
    scene.until("the 500 done ones are committed out of order", lambda: len(scene.unsettled()) == 1100, 60)
    assert all(scene.progress(p).open for p in range(4)), "the offset map is what carries them"
    first.kill()
    gate.touch()
    second = scene.start(spec)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 1600, 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    verdict(marks, scene.published).check()
    assert {m.pid for m in marks if m.what == "done" and m.key.startswith("slow")} == {second.pid}
    again = Counter((m.partition, m.offset) for m in marks if m.what == "start")
    quick = {(m.partition, m.offset) for m in marks if m.key.startswith("quick")}
    assert len(quick) == 500
    assert not [origin for origin in quick if again[origin] > 1], "what the offset map says is done ran again (G5)"
    behind = [m for m in marks if m.what == "start" and m.key.startswith("slow") and m.pid == first.pid]
    assert len(behind) == 1000, "one per key in flight"
    assert second.stop() == 0


def test_killed_under_load_with_retries_keeps_order_and_repeats_only_the_last_moments(scene: Scene) -> None:
    spec = scene.spec(tiers=("300ms", "600ms"), attempts=5, concurrency=50)
    topics_for(scene, spec)
    one, two = scene.start(spec), scene.start(spec)
    scene.until("they share the partitions", lambda: (len(one.partitions()), len(two.partitions())) == (2, 2), 40)
    records = [(f"k{n % 60}", {"sleep": 0.005, "fails": 1 + n % 3 if n % 37 == 0 else 0}) for n in range(3000)]
    scene.publish_many(records[:1500])
    scene.until(
        "the load runs in both", lambda: {m.pid for m in scene.ledger.marks("done")[-100:]} >= {one.pid, two.pid}
    )
    one.kill()
    killed_at = max(m.at for m in scene.ledger.marks() if m.pid == one.pid)
    three = scene.start(spec)
    scene.publish_many(records[1500:])
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 3000, 90)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    verdict(marks, scene.published, tier_s=0.3).check("duplicates")
    firsts: dict[tuple[int, int], Any] = {}
    for mark in marks:
        if mark.what != "done":
            continue
        before = firsts.setdefault((mark.partition, mark.offset), mark)
        if before is not mark:
            assert before.pid == one.pid, f"{mark} ran twice in workers that lived"
            assert before.at > killed_at - 2.5, f"{mark} was done {killed_at - before.at:.1f} s before the kill"
    took_over = min(
        m.at for m in marks if m.at > killed_at and m.partition in {x.partition for x in marks if x.pid == one.pid}
    )
    assert took_over - killed_at < 15, "the killed worker's work goes on within 15 s"
    assert scene.dead() == []
    assert two.stop() == 0
    assert three.stop() == 0


@pytest.mark.parametrize("tier", [0, 1])
def test_a_parked_key_survives_a_crash_in_each_tier(scene: Scene, tier: int) -> None:
    spec = scene.spec(tiers=TIERS, attempts=4)
    topics_for(scene, spec)
    first = scene.start_and_wait(spec)
    scene.publish("free", {})
    scene.until("the free one is committed", lambda: not scene.unsettled())
    head_at = scene.publish("k", {"fails": 3})
    scene.publish_many([("k", {"n": n}) for n in range(5)])
    lane = scene.lane(f"retry.{TIERS[tier]}")
    # Successors hop once: in the second tier there is the head alone, and what is due in the first waits in memory.
    copies = 6 if tier == 0 else 1
    scene.until(
        f"the head is in tier {tier}",
        lambda: len(scene.ledger.marks("fail")) == tier + 1 and scene.count(lane) >= copies,
    )
    first.kill()
    scene.publish_many([("k", {"n": n}) for n in range(5, 8)])
    second = scene.start(spec)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 10, 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    verdict(marks, scene.published, tier_s=TIERS_S[0]).check()
    head = [m for m in marks if (m.partition, m.offset) == head_at]
    assert [(m.what, m.attempt) for m in head if m.what != "start"] == [
        ("fail", 1),
        ("fail", 2),
        ("fail", 3),
        ("done", 4),
    ]
    waits = [b.at - a.at for a, b in zip(head[1::2], head[2::2], strict=False)]
    assert all(wait >= least for wait, least in zip(waits, (*TIERS_S, TIERS_S[1]), strict=True)), waits
    assert {m.pid for m in marks if m.key == "k" and m.offset > head_at[1]} == {second.pid}
    assert second.stop() == 0


def test_a_handoff_that_was_not_committed_is_not_run_from_the_source_again(scene: Scene) -> None:
    """Rule (d): the source record of a copy in a lane is settled unseen, though no commit says so."""
    spec = scene.spec(tiers=("2s",), attempts=3, flow={"commit_interval_ms": 60_000})
    topics_for(scene, spec)
    first = scene.start_and_wait(spec)
    head = scene.publish("k", {"fails": 1})
    scene.publish_many([("k", {"n": 1}), ("k", {"n": 2})])
    scene.until("all three are in the tier", lambda: scene.count(scene.lane("retry.2s")) == 3)
    assert scene.progress(head[0]).end <= head[1], "nothing of it is committed"
    first.kill()
    scene.start(spec)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 3, 40)
    marks = scene.ledger.marks()
    verdict(marks, scene.published, tier_s=2.0).check()
    assert [m.attempt for m in marks if m.what == "start"] == [1, 2, 1, 1]


def test_two_crashes_in_a_row_while_keys_are_parked(scene: Scene) -> None:
    """A later owner rebuilds from what the one before it left, which had not finished rebuilding or working."""
    spec = scene.spec(tiers=("500ms", "1s"), attempts=6, concurrency=100)
    topics_for(scene, spec)
    scene.publish_many(
        [(f"k{n % 20}", {"fails": 4 if n < 20 and n % 4 == 0 else 0, "sleep": 0.002}) for n in range(400)]
    )
    for _ in range(2):
        process = scene.start(spec)
        fails = len(scene.ledger.marks("fail"))
        scene.until("it works and fails", lambda fails=fails: len(scene.ledger.marks("fail")) >= fails + 3, 40)
        process.kill()
    last = scene.start(spec)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 400, 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    found = verdict(marks, scene.published, tier_s=0.5)
    found.check("duplicates")
    assert scene.dead() == []
    assert last.stop() == 0


@pytest.mark.parametrize("owner_lives", [True, False], ids=["owner lives", "owner gone"])
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_zombie_that_wakes_changes_nothing(scene: Scene, protocol: str, owner_lives: bool) -> None:
    """Stopped past its session with 200 handlers inside; the new owner does them; then the zombie's own handlers go on:
    half of them fail and are handed off by a worker that owns nothing any more, half succeed and want to commit."""
    gate = scene.folder / "gate"
    spec = scene.spec(settings={"group_protocol": protocol}, tiers=("1s",), attempts=3, concurrency=300)
    topics_for(scene, spec)
    zombie = scene.start_and_wait(spec)
    records = [(f"k{n}", {"gate": str(gate), "fails": n % 2}) for n in range(200)]
    scene.publish_many(records)
    scene.publish_many([(f"k{n}", {"behind": n}) for n in range(200)])
    scene.until("200 are in its hands", lambda: len(scene.ledger.marks("start")) == 200)
    zombie.send(signal.SIGSTOP)
    owner = scene.start(spec)
    scene.until("the partitions have moved", lambda: len(owner.partitions()) == 4, SESSION_S + 30)
    gate.touch()
    scene.until("the owner has done it all", lambda: len({m[2:] for m in scene.ledger.marks("done")}) == 400, 60)
    scene.until("all are committed", scene.settled)
    mine = [m for m in scene.ledger.marks() if m.pid == owner.pid]
    before = scene.committed()
    ended = {p: scene.progress(p).epoch for p in range(4)}
    if not owner_lives:  # nobody sees the zombie's copies come: the next owner, itself, finds them when it rebuilds
        assert owner.stop() == 0
    zombie.send(signal.SIGCONT)
    scene.until(
        "the zombie's handlers ended", lambda: zombie.said("partition lost") or len(zombie.partitions()) < 4, 30
    )
    more = scene.publish_many([(f"k{n}", {"after": n}) for n in range(200)])
    scene.until("records after it are done", lambda: set(more) <= set(scene.ledger.done()), 60)
    scene.until("all are committed", scene.settled)
    for process in (owner, zombie):
        assert process.stop() == 0
    heir = scene.start_and_wait(spec)  # a later owner must not find the zombie's copies alive either
    last = scene.publish_many([(f"k{n}", {"heir": n}) for n in range(200)])
    scene.until("records of a later owner are done", lambda: set(last) <= set(scene.ledger.done()), 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    # What it had in its hands when it was stopped, and what of its queue it starts before it hears the news, it does again:
    # I4 bounds that by the work in flight. Nothing else may run twice, and no copy that it wrote may run at all.
    given = set(scene.published[:400])
    late = [m for m in marks if m.pid == zombie.pid and (m.partition, m.offset) in given]
    others = [m for m in marks if m not in set(late)]
    verdict(others, scene.published).check()
    assert sum(m.what == "done" for m in late) <= 200
    assert {m.attempt for m in late} == {1}, "it ran a retry of its own"
    in_zombie = Counter((m.partition, m.offset) for m in late if m.what in ("done", "fail"))
    assert all(n == 1 for n in in_zombie.values()), "it ran something twice by itself"
    assert not [m for m in mine if m.attempt > 2]
    copies = [decode(m.headers()) for m in scene.read(scene.lane("retry.1s"))]
    written = Counter((c.origin_partition, c.origin_offset, c.epoch < ended[c.origin_partition]) for c in copies)
    print(f"{sum(late for *_, late in written)} of {len(copies)} copies in the tier were written by the zombie")
    runs = Counter((m.partition, m.offset, m.attempt) for m in others if m.what == "start")
    assert max(runs.values()) == 1, [run for run, n in runs.items() if n > 1][:5]
    for tp, position in before.items():
        after = scene.committed()[tp]
        assert after.offset >= position.offset, f"{tp} went back from {position.offset} to {after.offset}"
    assert scene.dead() == []
    assert heir.stop() == 0
