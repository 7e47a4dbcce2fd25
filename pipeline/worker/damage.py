"""Batches that can't be read, on the poll side: told apart from a passing fault, measured, and passed over.

    fault -> sought again -> the same fault, `SIGHTINGS` times -> offsets behind it are tried (`core.batch_end`) -> Unreadable
                |-> records come: it was a fault of the wire

While a batch is under suspicion nothing from behind it reaches the engine: a gap would count as settled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pipeline.core.batch_end import BatchEnd
from pipeline.core.unreadable import Damage
from pipeline.model.cluster import FetchFault, GroupConsumer, Message, TopicPartition
from pipeline.model.errors import ClusterError
from pipeline.worker.inputs import Faulted, Input, Unreadable

BAD = "bad_batch"
SIGHTINGS = 3
SILENCE_S = 2.0
"""A try that gives nothing for so long: there are only markers of transactions, or the broker is away. Either way the offset
is not proven bad, and is sought again later."""
AFTERMATH_S = 10.0
"""How long after a damaged batch the client may still stumble over what it took for offsets in there."""
END_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Suspect:
    """`first`: the first offset of the batch that we need; `at`: where fetching was sent last; `end`: of the partition.

    Of one poll: `seen`, the same fault again; `other`, the first other one.
    """

    fault: FetchFault
    first: int
    at: int
    until_s: float = 0.0
    sightings: int = 0
    seen: bool = True
    other: FetchFault | None = None
    search: BatchEnd | None = None
    end: int = 0

    @property
    def base(self) -> int:
        return self.fault.offset

    @property
    def next_batch(self) -> int | None:
        """The other fault's offset, if that can be a damaged batch behind this one."""
        other = self.other
        return other.offset if other and other.kind == BAD and self.base < other.offset < self.end else None


class DamagedBatches:
    """Belongs to the poll thread. True while there is anything to look at after a poll.

    After a CRC error librdkafka 2.16 reads on inside the batch and may go to whatever offset it takes from there: of the faults of
    one poll only the first counts, and one that no fetch of ours explains sends the fetcher back to where it should be.
    """

    def __init__(self, consumer: GroupConsumer, post: Callable[[Input], None], monotonic: Callable[[], float]) -> None:
        self._consumer = consumer
        self._post = post
        self._monotonic = monotonic
        self._asked: dict[TopicPartition, int] = {}
        self._suspects: dict[TopicPartition, _Suspect] = {}
        self._passed_s: dict[TopicPartition, float] = {}
        self._astray: set[TopicPartition] = set()

    def __bool__(self) -> bool:
        return bool(self._suspects or self._astray)

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._suspects or partition in self._astray

    def sought(self, positions: Mapping[TopicPartition, int]) -> None:
        """The partitions are fetched from here; what was suspected before is out of date."""
        self.forget(positions)
        self._asked.update(positions)

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        for tp in partitions:
            self._astray.discard(tp)
            self._asked.pop(tp, None)
            self._suspects.pop(tp, None)
            self._passed_s.pop(tp, None)

    def told(self, fault: FetchFault) -> bool:
        """True when the fault is one of these; it is looked at by the next `sift`."""
        tp = fault.partition
        suspect = self._suspects.get(tp)
        if suspect is None:
            if fault.kind == BAD and fault.offset >= 0 and tp in self._asked:
                self._suspect(fault)
                return True
            if fault.kind == "out_of_range" and self._monotonic() < self._passed_s.get(tp, 0.0) + AFTERMATH_S:
                self._astray.add(tp)
                return True
            return False
        if suspect.seen or suspect.other is not None:
            return True
        if fault.kind == "out_of_range" and fault.offset == suspect.at:
            del self._suspects[tp]  # it was deleted meanwhile
            return False
        if fault.kind == BAD and fault.offset == suspect.base:
            suspect.seen = True
        else:
            suspect.other = fault
        return True

    def _suspect(self, fault: FetchFault) -> None:
        first = max(fault.offset, self._asked[fault.partition])
        self._suspects[fault.partition] = _Suspect(fault, first, first)
        self._post(Faulted(fault))

    def sift(self, messages: list[Message], paused: Collection[TopicPartition], held: bool) -> list[Message]:
        """The records of a poll without those that come from behind a suspected batch. Call it after each poll."""
        for tp in self._astray:
            self._consumer.seek(tp, self._asked[tp])
        self._astray.clear()
        for tp, suspect in tuple(self._suspects.items()):
            behind = [m for m in messages if m.offset() >= suspect.base and (m.topic(), m.partition()) == tp]
            if behind and not suspect.seen and suspect.search is None:
                behind = self._can_be_read(tp, suspect, behind)
                suspect = self._suspects.get(tp, suspect)
            if behind:
                dropped = set(map(id, behind))
                messages = [m for m in messages if id(m) not in dropped]
            if tp in self._suspects:
                self._conclude(tp, suspect, bool(behind), held or tp in paused)
        return messages

    def _can_be_read(self, tp: TopicPartition, suspect: _Suspect, behind: list[Message]) -> list[Message]:
        """It was a fault of the wire. Gives those of its records that come from behind another damaged batch."""
        del self._suspects[tp]
        other = suspect.other
        if other is None or other.kind != BAD or other.offset <= suspect.base:
            return []
        self._suspect(other)
        return [m for m in behind if m.offset() >= other.offset]

    def _conclude(self, tp: TopicPartition, suspect: _Suspect, behind: bool, paused: bool) -> None:
        """What this poll said of the batch, and where to fetch next."""
        seen, other, next_batch = suspect.seen, suspect.other, suspect.next_batch
        suspect.seen, suspect.other = False, None
        now_s, search = self._monotonic(), suspect.search
        if not (seen or behind or other):
            if paused:
                suspect.until_s = now_s + SILENCE_S
            if now_s < suspect.until_s:
                return
        if search is None:
            suspect.sightings += seen
            if suspect.sightings >= SIGHTINGS:
                self._begin(tp, suspect)
        elif seen:
            search.failed(suspect.at)
        elif next_batch is not None:
            search.passed(min(suspect.at, next_batch))
        elif not other:
            search.passed(suspect.at)
        self._go_on(tp, suspect)

    def _begin(self, tp: TopicPartition, suspect: _Suspect) -> None:
        try:
            end = self._consumer.end_offsets([tp], END_TIMEOUT_S)[tp]
        except ClusterError:
            return  # the next sighting asks again
        suspect.end = max(end, suspect.first + 1)
        suspect.search = BatchEnd(suspect.first, suspect.end)

    def _go_on(self, tp: TopicPartition, suspect: _Suspect) -> None:
        """Send the fetcher back to the batch, on to the next try, or past the batch."""
        search = suspect.search
        at = suspect.first if search is None else search.probe
        if at is None:
            assert search is not None, "only a search is ever without a next try"
            at = search.next
            del self._suspects[tp]
            self._asked[tp], self._passed_s[tp] = at, self._monotonic()
            self._post(Unreadable(tp, Damage(suspect.first, at, suspect.fault.kind, suspect.fault.text)))
        suspect.at, suspect.until_s = at, self._monotonic() + SILENCE_S
        self._consumer.seek(tp, at)
