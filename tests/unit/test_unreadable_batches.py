"""Batches that can't be read: found out about, measured and passed over with one pointer, and nothing else is lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Context, Reject
from pipeline.core.batch_end import BatchEnd
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.log import MemoryMessage
from pipeline.memory.loop import VirtualClockLoop
from pipeline.model.alerts import Alert
from pipeline.model.cluster import FetchFault, Message, TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.headers import Pointer, decode
from pipeline.worker.damage import AFTERMATH_S, SIGHTINGS, SILENCE_S, DamagedBatches
from pipeline.worker.inputs import Faulted, Input, Unreadable
from pipeline.worker.worker import Worker
from tests.unit.test_worker_review import GROUP, TOPIC, application, play, publish, until

DLQ, TIER = "t.g.dlq", "t.g.retry.10s"
PLACE = TopicPartition("t", 0)


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


# -- the search


@given(first=st.integers(0, 10**12), length=st.integers(1, 10**7), behind=st.integers(0, 10**9))
def test_the_end_of_a_batch_is_found_in_few_tries(first: int, length: int, behind: int) -> None:
    end = first + length
    search, tries = BatchEnd(first, end + behind), 0
    while (probe := search.probe) is not None:
        assert first < probe < end + behind
        tries += 1
        if probe < end:
            search.failed(probe)
        else:
            search.passed(probe)
    assert search.next == end
    assert tries <= 2 * math.log2(length + 1) + 2


@given(st.data())
def test_tries_that_say_nothing_never_lead_past_the_batch(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 1_000))
    search = BatchEnd(0, data.draw(st.integers(length, 2_000)))
    while (probe := search.probe) is not None:
        if probe < length and data.draw(st.booleans()):
            search.failed(probe)
        else:
            search.passed(probe)
    assert 1 <= search.next <= length


# -- the poll side, with a scripted client


class Log:
    """A partition of batches, each (first, last, fit to read), as librdkafka gives them; what was sought is fetched next."""

    def __init__(self, *batches: tuple[int, int, bool]) -> None:
        self.batches = batches
        self.at: int | None = 0
        self.sought: list[int] = []
        self.reachable = True

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        if not self.reachable:
            raise ClusterUnavailable("no answer")
        return {PLACE: self.batches[-1][1] + 1}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.at = offset
        self.sought.append(offset)

    def poll(self, told: Callable[[FetchFault], bool]) -> list[Message]:
        """One batch at most. A fault leaves the position where it is."""
        found = next((b for b in self.batches if self.at is not None and b[1] >= self.at), None)
        if found is None or self.at is None:
            return []
        if not found[2]:
            told(bad(found[0]))
            return []
        records: list[Message] = [record(offset) for offset in range(max(found[0], self.at), found[1] + 1)]
        self.at = found[1] + 1
        return records


def bad(offset: int, kind: str = "bad_batch") -> FetchFault:
    return FetchFault(PLACE, offset, kind, "it can't be read")


def record(offset: int) -> MemoryMessage:
    return MemoryMessage(("t", 0, offset), b"k", b"v", None, 1)


class Poller:
    """What the fetcher does with it."""

    def __init__(self, log: Log) -> None:
        self.log, self.now_s = log, 0.0
        self.posted: list[Input] = []
        self.read: list[int] = []
        self.damaged = DamagedBatches(log, self.posted.append, lambda: self.now_s)  # type: ignore[arg-type]
        self.damaged.sought({PLACE: 0})

    def poll(self, messages: list[Message] | None = None, paused: bool = False) -> None:
        found = self.log.poll(self.damaged.told) if messages is None else messages
        self.read += [m.offset() for m in self.damaged.sift(found, {PLACE} if paused else (), held=False)]

    def poll_until_quiet(self) -> None:
        for _ in range(200):
            self.now_s += SILENCE_S
            self.poll()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(each.damage.first, each.damage.next) for each in self.posted if isinstance(each, Unreadable)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_every_record_of_readable_batches_is_read_and_every_other_one_is_in_a_range(
    shape: list[tuple[int, bool, int]],
) -> None:
    batches, at = [], 0
    for length, fit, gap in shape:
        batches.append((at, at + length - 1, fit))
        at += length + gap
    poller = Poller(Log(*batches))
    poller.poll_until_quiet()
    assert poller.read == [o for first, last, fit in batches if fit for o in range(first, last + 1)]
    wanted = {o for first, last, fit in batches if not fit for o in range(first, last + 1)}
    covered = {o for first, following in poller.ranges for o in range(first, following)}
    gaps = set(range(at)) - {o for first, last, _ in batches for o in range(first, last + 1)}
    assert wanted <= covered <= wanted | gaps
    assert not poller.damaged


def test_a_fault_of_the_wire_is_forgotten_when_the_batch_can_be_read() -> None:
    poller = Poller(Log((0, 9, True)))
    for _ in range(SIGHTINGS - 1):
        poller.damaged.told(bad(0))
        poller.poll([])
    poller.poll()
    assert poller.read == list(range(10))
    assert poller.ranges == []
    assert not poller.damaged
    assert [type(each) for each in poller.posted] == [Faulted]


def test_what_comes_from_behind_a_suspected_batch_is_not_passed_on() -> None:
    """librdkafka 2.16 goes on inside a batch that fails its CRC, and gives what it takes for batches there."""
    poller = Poller(Log((0, 4, True), (5, 9, False), (10, 14, True)))
    poller.poll()
    poller.damaged.told(bad(5))
    assert poller.damaged.told(bad(4846791580151137091))
    assert poller.damaged.told(bad(4846791580151137092, "out_of_range"))
    poller.poll([record(4), record(6), record(4846791580151137091)])
    assert poller.read == [0, 1, 2, 3, 4, 4]
    assert poller.log.sought == [5]
    poller.poll_until_quiet()
    assert poller.ranges == [(5, 10)]
    assert poller.read == [0, 1, 2, 3, 4, 4, 10, 11, 12, 13, 14]


def test_a_client_that_went_astray_in_a_damaged_batch_is_sent_back() -> None:
    """What it took for an offset is out of range, and it would stand still there; its word comes late, too."""
    poller = Poller(Log((0, 9, False), (10, 12, True)))
    for number in range(60):
        poller.poll()
        if number % 2 and poller.log.at is not None and poller.log.at < 10:
            poller.log.at = None
            assert poller.damaged.told(bad(4846791580151137092, "out_of_range"))
    assert poller.ranges == [(0, 10)]
    poller.log.at = None
    assert poller.damaged.told(bad(4846791580151137092, "out_of_range"))
    poller.poll([])
    poller.poll()
    assert poller.read == [10, 11, 12] * 2
    poller.now_s += AFTERMATH_S
    assert not poller.damaged.told(bad(13, "out_of_range"))


def test_a_batch_that_was_deleted_meanwhile_is_out_of_range() -> None:
    poller = Poller(Log((0, 9, False)))
    poller.poll()
    assert not poller.damaged.told(bad(0, "out_of_range"))
    assert not poller.damaged


def test_a_paused_partition_is_not_judged_by_its_silence() -> None:
    poller = Poller(Log((0, 9, False), (10, 12, True)))
    for _ in range(SIGHTINGS):
        poller.poll()
    tried = len(poller.log.sought)
    for _ in range(5):
        poller.now_s += 2 * SILENCE_S
        poller.poll([], paused=True)
    assert len(poller.log.sought) == tried
    poller.poll_until_quiet()
    assert poller.ranges == [(0, 10)]


def test_without_an_answer_about_the_end_nothing_is_passed_over() -> None:
    poller = Poller(Log((0, 9, False), (10, 12, True)))
    poller.log.reachable = False
    poller.poll_until_quiet()
    assert poller.ranges == []
    assert poller.damaged
    poller.log.reachable = True
    poller.poll_until_quiet()
    assert poller.ranges == [(0, 10)]
    assert poller.read == [10, 11, 12]


# -- the worker, on the memory cluster


def read_all(cluster: MemoryCluster, topic: str) -> list[MemoryMessage]:
    log = cluster.log(TopicPartition(topic, 0))
    return log.read(log.start, 10_000)


def position(cluster: MemoryCluster) -> int:
    found = cluster.admin().group_positions(GROUP)
    return found[PLACE].offset if PLACE in found else 0


Story = Callable[[VirtualClockLoop, MemoryCluster, Worker], Awaitable[None]]


@pytest.mark.parametrize("batch", [(0, 3), (4, 4), (3, 17), (15, 19)], ids=str)
def test_a_batch_in_the_source_is_passed_over_with_a_pointer(batch: tuple[int, int]) -> None:
    seen: list[int] = []
    told: list[Alert] = []

    @application(on_dead_letter=told.append)
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(int(value))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges.add((TOPIC, 0, *batch))
        publish(cluster, *(b"k%d" % (n % 3) for n in range(20)))
        good = [n for n in range(20) if not batch[0] <= n <= batch[1]]
        await until(lambda: sorted(seen) == good and position(cluster) == 20 and bool(told))
        for key in range(3):
            assert [n for n in seen if n % 3 == key] == [n for n in good if n % 3 == key]
        (letter,) = read_all(cluster, DLQ)
        assert (letter.key(), letter.value()) == (None, None)
        headers = decode(letter.headers())
        assert (headers.origin_topic, headers.origin_partition, headers.origin_offset) == (TOPIC, 0, batch[0])
        assert headers.pointer == Pointer("bad_batch", batch[1])
        assert headers.error.error_class == "UnreadableBatch"
        assert f"offsets {batch[0]} to {batch[1]} of t[0]" in headers.error.message
        stats = worker.running[0].engine.stats
        assert (stats.unreadable_batches, stats.fetch_faults, stats.dead["UnreadableBatch"]) == (1, 1, 1)
        assert told[0].as_json()["error"]["class"] == "UnreadableBatch"

    play(app, story)


def test_a_record_that_is_too_large_for_the_dead_letters_leaves_a_pointer() -> None:
    """A small compressed batch may hold it, and no lane takes it as it is: it must not stop its partition for ever."""
    seen: list[int] = []

    @application()
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(len(value))
        if len(value) > 1_000_000:
            raise Reject("too much")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
        producer = cluster.producer("agents")
        for value in (b"a", bytes(3_000_000), b"bc"):
            producer.send(TOPIC, b"k", value, partition=0)
        await until(lambda: position(cluster) == 3)
        assert seen == [1, 3_000_000, 2]
        (letter,) = read_all(cluster, DLQ)
        headers = decode(letter.headers())
        assert (letter.key(), letter.value(), headers.origin_offset) == (b"k", None, 1)
        assert headers.pointer == Pointer("too_large", 1)
        assert headers.error.error_type == "Reject"

    play(app, story)


def test_no_commit_passes_the_batch_before_its_pointer_is_acknowledged() -> None:
    seen: list[int] = []

    @application()
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(int(value))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges.add((TOPIC, 0, 5, 9))
        cluster.faults.denied_topics.add(DLQ)
        publish(cluster, *(b"k%d" % n for n in range(20)))
        await until(lambda: worker.running[0].engine.stats.unreadable_batches == 1)
        await asyncio.sleep(5)
        assert position(cluster) == 5
        cluster.faults.denied_topics.clear()
        await until(lambda: position(cluster) == 20)
        assert sorted(seen) == [*range(5), *range(10, 20)]
        assert len(read_all(cluster, DLQ)) == 1

    play(app, story)


def test_a_crash_before_the_commit_writes_the_pointer_again_and_loses_nothing() -> None:
    seen: list[int] = []

    @application()
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(int(value))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges.add((TOPIC, 0, 5, 9))
        cluster.faults.denied_topics.add(DLQ)
        publish(cluster, *(b"k%d" % n for n in range(20)))
        await until(lambda: position(cluster) == 5 and len(seen) == 15)
        die(cluster, worker)
        cluster.faults.denied_topics.clear()
        other = Worker(app)
        await other.start()
        await until(lambda: position(cluster) == 20)
        await other.stop()
        assert set(seen) == {*range(5), *range(10, 20)}
        (letter,) = read_all(cluster, DLQ)
        assert decode(letter.headers()).pointer == Pointer("bad_batch", 9)

    play(app, story)


def die(cluster: MemoryCluster, worker: Worker) -> None:
    cluster.kill("app")
    worker.abandon()


def failing_once(seen: list[tuple[int, int]], bad: Collection[int]) -> Any:
    async def handle(value: bytes, ctx: Context) -> None:
        seen.append((int(value), ctx.attempt))
        if int(value) in bad and ctx.attempt == 1:
            raise ConnectionError("not now")

    return handle


def pointers(cluster: MemoryCluster) -> list[tuple[str, int, int]]:
    found = [decode(letter.headers()) for letter in read_all(cluster, DLQ)]
    return [(each.origin_topic, each.origin_offset, each.pointer.last_offset) for each in found if each.pointer]


def send(cluster: MemoryCluster, *records: tuple[bytes, int]) -> None:
    producer = cluster.producer("agents")
    for key, value in records:
        producer.send(TOPIC, key, b"%d" % value, partition=0)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_keys_do_not_wait_for_ever_for_a_copy_that_was_in_a_damaged_batch_of_a_tier(delivery: str) -> None:
    """0 and 1, which waits behind it, are lost in the tier. Their key goes on, and what is lost has its pointers."""
    seen: list[tuple[int, int]] = []
    app = application(tiers=("10s",), attempts=3, delivery=delivery)(failing_once(seen, {0, 3}))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges |= {(TIER, 0, 0, 0), (TIER, 0, 1, 1)}
        send(cluster, (b"a", 0), (b"a", 1), (b"b", 2), (b"c", 3))
        await until(lambda: (3, 2) in seen)
        send(cluster, (b"a", 4), (b"c", 5))
        await until(lambda: position(cluster) == 6)
        assert seen == [(0, 1), (2, 1), (3, 1), (3, 2), (4, 1), (5, 1)]
        assert len(worker.running[0].engine.partitions[0].parking) == 0
        assert pointers(cluster) == [(TIER, 0, 0), (TIER, 1, 1)]

    play(app, story)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_copy_behind_the_damaged_batch_is_still_waited_for(delivery: str) -> None:
    """Letting go of too much would run 4 before 3, whose copy is in the tier behind the batch."""
    seen: list[tuple[int, int]] = []
    app = application(tiers=("10s",), attempts=3, delivery=delivery)(failing_once(seen, {0, 3}))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges.add((TIER, 0, 0, 0))
        send(cluster, (b"a", 0), (b"b", 3))
        await until(lambda: worker.running[0].engine.stats.unreadable_batches == 1)
        send(cluster, (b"b", 4), (b"a", 1))
        await until(lambda: len(seen) == 5)
        assert seen == [(0, 1), (3, 1), (1, 1), (3, 2), (4, 1)]
        assert pointers(cluster) == [(TIER, 0, 0)]

    play(app, story)


def test_with_exactly_once_a_damaged_batch_is_one_doubt_however_much_is_written_to_its_lane() -> None:
    """Where copies landed nobody is told, so the partition is opened anew; the batch is met again then, and must not do so again."""
    seen: list[tuple[int, int]] = []
    app = application(tiers=("10s",), attempts=3, delivery="exactly_once")(failing_once(seen, range(200)))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.faults.bad_ranges.add((TIER, 0, 0, 0))
        engine = worker.running[0].engine
        for number in range(200):
            send(cluster, (b"%d" % number, number))
            await asyncio.sleep(0.1)
        await until(lambda: engine.stats.processed == 199)
        assert engine.transactions is not None
        assert engine.transactions.counts.aborted == 1
        assert pointers(cluster) == [(TIER, 0, 0)]

    play(app, story)


def test_a_damaged_batch_in_a_tier_does_not_stop_the_next_owner_from_opening() -> None:
    seen: list[tuple[int, int]] = []
    app = application(tiers=("10s",), attempts=3)(failing_once(seen, {0, 1, 2}))

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a", b"b", b"c", b"d")
        await until(lambda: position(cluster) == 4)
        die(cluster, worker)
        cluster.faults.bad_ranges.add((TIER, 0, 0, 1))
        other = Worker(app)
        await other.start()
        await until(lambda: (2, 2) in seen)
        publish(cluster, b"a")
        tier = TopicPartition(TIER, 0)
        await until(lambda: cluster.admin().group_positions(GROUP)[tier].offset == 3)
        assert len(seen) == 6
        (letter,) = read_all(cluster, DLQ)
        assert decode(letter.headers()).pointer == Pointer("bad_batch", 1)
        await other.stop()

    play(app, story)
