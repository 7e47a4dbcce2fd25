"""Rows about topics, rights, clocks and replays: what can't be written, what is configured wrong, what somebody changes meanwhile."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Collection

from pipeline.core.progress import Progress, decode
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.replay.fetching import FETCH
from tests.fault.history import Origin
from tests.fault.reading import copies, read_all
from tests.fault.trial import Trial
from tests.integration.harness import until
from tests.integration.replays import Replays, check_history, origins

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
WINDOW = 1_000
SETTLED_S = 2.0
LOOPED, LOOPS, REPLAYS_MAX = 200, 3, 2


def clock_skew(trial: Trial) -> None:
    """Row 11: one worker's clock is an hour fast, another's an hour slow, a third's is right; partitions move between them."""
    trial.make_topics()
    fast, slow = trial.worker(skew_ms=HOUR_MS), trial.worker(skew_ms=-HOUR_MS)
    trial.shared([fast, slow])
    trial.begin()
    trial.faults += ["clock an hour fast", "clock an hour slow"]
    trial.until_done(0.3)
    right = trial.worker()
    trial.until_done(0.5)
    trial.stop(slow)
    trial.healed()
    trial.until_done(0.7)
    trial.stop(fast)
    trial.shared([right])


def dead_letters_refused(trial: Trial) -> None:
    """Row 19: the dead letters may not be written: no offset passes them, the worker says so; then they may, and all is written."""
    trial.prepare(2)
    dead = trial.scene.lane("dlq")
    trial.until_done(0.1)
    trial.ground.forbid_writes(dead)
    trial.disturb("dead letters not writable by ACL")
    trial.wait(
        "the workers say that they can't write them",
        lambda: any(process.status()[0] == 503 and dead in process.status()[1] for process in trial.live),
        60,
    )
    trial.result.note = "health says 503 and names the topic"
    before = _settled(trial, dead)
    trial.pause(3.0)
    if (after := trial.scene.count(dead)) != before:
        trial.problem(f"{after - before} dead letters were written while it was forbidden")
    rejected = {(m.partition, m.offset) for m in trial.tally.update().marks if m.what == "reject"}
    written = {(int(h["pl.origin.partition"]), int(h["pl.origin.offset"])) for h in trial.dead_headers()}
    committed = {tp: decode(at.offset, at.metadata) for tp, at in trial.scene.committed().items()}
    for origin, (place, offset) in _where_they_stand(trial, rejected - written).items():
        progress = committed.get(place, Progress(0, 0))
        if offset < progress.end and offset not in progress.open:
            trial.problem(f"{origin} was committed past in {place.topic} at {offset} without its dead letter")
    trial.ground.allow_writes(dead)
    trial.healed({partition for partition, _ in rejected - written})


def _where_they_stand(trial: Trial, origins: Collection[Origin]) -> dict[Origin, tuple[TopicPartition, int]]:
    """Each one's newest copy in a lane: what lies behind one of its key that failed has gone on there. Else its place in the source."""
    found = {each: (TopicPartition(trial.scene.topic(), each[0]), each[1]) for each in origins}
    hops: dict[Origin, int] = {}
    for copy in copies(read_all(trial.ground.direct, trial.lanes())):
        if copy.origin in found and copy.hop > hops.get(copy.origin, 0):
            hops[copy.origin] = copy.hop
            found[copy.origin] = (TopicPartition(copy.topic, copy.partition), copy.offset)
    return found


def _settled(trial: Trial, topic: str) -> int:
    """The records of a topic, once no more come: each node learns of a rule by itself, some later than the first that refused."""
    seen = [trial.scene.count(topic)]

    def quiet() -> bool:
        trial.pause(SETTLED_S)
        seen.append(trial.scene.count(topic))
        return seen[-1] == seen[-2]

    trial.wait("every node knows that nothing may be written", quiet, 30)
    return seen[-1]


def replays_killed(trial: Trial) -> None:
    """Row 20: a replay is killed at drawn stages and taken up; then two run one plan at once, and one of them is killed."""
    replays = Replays(trial.scene)
    count = trial.plan.records // 2
    trial.say(f"{count:,} records to replay, twice")
    replays.prepare(count, keys=200)
    plan = replays.plan()
    deaths = 0
    for stage in ("sent", "acknowledged", "recorded"):
        replays.dies(plan, die_at=stage, die_after=trial.draw.randint(1, 3), window=WINDOW)
        deaths += 1
        trial.disturb(f"replay killed when {stage}")
    assert dict(replays.run(plan, window=WINDOW).counts) == {"written": count}
    twice = check_history(replays, plan, origins(trial.scene), deaths * (WINDOW + FETCH))
    plan = replays.plan(rate=max(20.0, count / 25))
    started = []
    for name in ("first", "second"):
        announced = trial.scene.folder / name
        started.append(replays.start(plan, announce=str(announced), join=bool(started), window=WINDOW))
        until(f"the {name} sends", announced.exists, 60)
    first, second = started
    first.send_signal(signal.SIGKILL)
    first.communicate()
    trial.disturb("one of two replays killed")
    killed = time.monotonic()
    assert replays.finish(second) == {"state": "finished", "counts": {"written": count}}
    twice += check_history(replays, plan, origins(trial.scene), WINDOW + FETCH)
    trial.result.records, trial.result.duplicates = 2 * count, twice
    trial.result.bound = (deaths + 1) * (WINDOW + FETCH)
    trial.result.note = f"the other had sent the rest {time.monotonic() - killed:.0f} s after the kill"
    _loop_ends(trial, replays)


def _loop_ends(trial: Trial, replays: Replays) -> None:
    """A topic is replayed into itself: what was replayed twice stays where it is."""
    loop = trial.scene.topic("loop")
    trial.scene.admin.create_topics([TopicSpec(loop, trial.plan.partitions)])
    tally = replays.run(replays.plan(to_topic=loop, limit=LOOPED, allowed=frozenset({loop})))
    for _ in range(LOOPS):
        plan = replays.plan(loop, to_topic=loop, replays_max=REPLAYS_MAX, allowed=frozenset({loop}))
        tally = replays.run(plan)
    trial.faults.append(f"a topic replayed into itself {LOOPS} times")
    counts = Counter(delivery.replay_count for _, delivery in replays.copies(loop))
    if max(counts) != REPLAYS_MAX or not tally.counts.get("loop_capped"):
        trial.problem(f"a loop of replays is not capped at {REPLAYS_MAX}: {dict(counts)}, {dict(tally.counts)}")


def retention_too_short(trial: Trial) -> None:
    """Row 23: a tier forgets its records before they could be due: no worker starts, and each says why; mended, all is done."""
    trial.make_topics()
    tier = trial.lanes()[0]
    for retention_ms in (500, 3 * DAY_MS):
        trial.scene.admin.set_configs(tier, {"retention.ms": str(retention_ms)})
        refused = trial.worker()
        trial.live.remove(refused)
        if (code := refused.popen.wait(60)) != 2:
            trial.problem(f"a worker ended with code {code}, not 2, on retention.ms={retention_ms}")
        said = refused.log.read_text()
        if "retention.ms" not in said or tier not in said:
            trial.problem(f"the refusal does not name retention.ms and {tier}: {said[-300:]}")
        trial.faults.append(f"retention.ms={retention_ms} on a tier")
    trial.make_topics()
    trial.workers(2)
    trial.begin()


def _publish_to(trial: Trial, partition: int) -> list[tuple[int, int]]:
    """50 records; none while the node that the producer asks does not know of the partition yet."""
    trial.scene._producer = None
    with contextlib.suppress(AssertionError):
        return trial.scene.publish_many([(f"new{n}", {"n": n}) for n in range(50)], partition=partition)
    return []


def _lane_ends(trial: Trial) -> dict[TopicPartition, int]:
    places = [TopicPartition(lane, p) for lane in trial.lanes() for p in range(trial.plan.partitions)]
    ends: dict[TopicPartition, int] = trial.scene.admin.end_offsets(places)
    return ends


def _unsettled(trial: Trial, ends: dict[TopicPartition, int]) -> int:
    """How many of the copies below these ends the group's commits still leave open."""
    positions, count = trial.scene.committed(), 0
    for place, end in ends.items():
        position = positions.get(place)
        progress = Progress(0, 0) if position is None else decode(position.offset, position.metadata)
        settled_to = min(end, max(progress.offset, progress.end))
        count += end - settled_to + sum(offset < settled_to for offset in progress.open)
    return count


def partitions_added(trial: Trial) -> None:
    """Row 24: the source gets two more partitions under load: it is reported, what was there goes on; applied, they are worked on."""
    trial.plan.settings["client"] = {"topic.metadata.refresh.interval.ms": "2000"}
    trial.prepare(2)
    trial.until_done(0.3)
    source, more = trial.scene.topic(), trial.plan.partitions + 2
    trial.wait("records are parked", lambda: _unsettled(trial, _lane_ends(trial)))
    parked = _lane_ends(trial)
    trial.scene.admin.add_partitions(source, more)
    waiting = _unsettled(trial, parked)
    if not waiting:
        trial.problem("no record was parked while partitions were added, so the row shows nothing of them")
    trial.disturb(f"two partitions added to the source while {waiting} records were parked")
    trial.wait("they have leaders", lambda: trial.ground.leaders(source).get(more - 1, -1) > 0)
    new = trial.wait("the load knows of them", lambda: _publish_to(trial, more - 1))
    trial.wait(
        "a worker reports it",
        lambda: any("partitions" in process.status()[1] and process.status()[0] == 503 for process in trial.live),
        60,
    )
    trial.result.note = next(text for text in (p.status()[1] for p in trial.live) if '"why"' in text)[:200]
    trial.until_done(0.8)
    if set(new) & trial.tally.done:
        trial.problem("records of a partition without lanes were handled")
    trial.make_topics()
    trial.healed()
    trial.wait("the new partition is worked on", lambda: set(new) <= trial.tally.update().done, 90)
    trial.wait(
        "it is committed",
        lambda: trial.scene.committed()[TopicPartition(source, more - 1)].offset >= 50,
    )
    trial.result.records += len(new)
