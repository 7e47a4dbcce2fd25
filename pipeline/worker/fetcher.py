"""The poll side of a subscription: owns the consumer, always polls, never runs a handler.

    engine --commands--> Fetcher --inputs--> engine

Driven by a thread of its own on Kafka and by the event loop on the memory cluster (`drivers`): the same `step` either way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.core.flow import Gate
from pipeline.core.unit import LaneSpec
from pipeline.model.cluster import FetchFault, GroupConsumer, Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, PipelineError, TopologyError
from pipeline.model.transactions import Membership
from pipeline.worker.damage import DamagedBatches
from pipeline.worker.inputs import Claimed, Committed, Ended, Faulted, Fetched, Input, Lost, Opened, Refused, Revoking
from pipeline.worker.opening import TRY_TIMEOUTS_S, FetchPolicy, Opener
from pipeline.worker.tenure import Tenure

OPEN_RETRY_S = (0.1, 0.3, 1.0, 3.0, 10.0)
FULL_BEFORE_PAUSE_S = 0.5


@dataclass(slots=True)
class _Opening:
    tries: int = 0
    at_s: float = 0.0


class Fetcher:
    """See the module. Only `request`, `release`, `vouch` and `polled_at` may be used from another thread.

    `lanes`: see `Opener`; `backlog(fetched)` is how many of all records fetched so far have not been started.
    """

    def __init__(
        self,
        consumer: GroupConsumer,
        policy: FetchPolicy,
        lanes: Callable[[float], Sequence[LaneSpec]],
        post: Callable[[Input], None],
        backlog: Callable[[int], int],
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._consumer = consumer
        self._policy = policy
        self._opener = Opener(consumer, policy, lanes)
        self._post = post
        self._backlog = backlog
        self._monotonic = monotonic
        self._commands: deque[Callable[[], None]] = deque()
        self._opening: dict[int, _Opening] = {}
        self._owned: dict[int, tuple[TopicPartition, ...]] = {}
        self._released: dict[int, tuple[int, Mapping[TopicPartition, Position]]] = {}
        self._terms: dict[int, int] = {}
        self._revoking: tuple[int, ...] = ()
        self._added: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._rebuilding: set[int] = set()
        self._tenure = Tenure(consumer, monotonic, wait)
        self._vouching: deque[tuple[Collection[TopicPartition], Callable[[Membership | None], None]]] = deque()
        self._ends_told: dict[TopicPartition, int] = {}
        self._room = Gate(policy.buffered)
        self._full_since: float | None = None
        self._held = False
        self._fetched = 0
        self._damaged = DamagedBatches(consumer, post, monotonic)
        self.wake_driver: Callable[[], None] = consumer.wake
        self.polled_at = monotonic()

    # -- for the engine

    def request(self, command: Callable[[], None]) -> None:
        """Run `command` (a bound method below) in the poll thread, soon."""
        self._commands.append(command)
        self.wake_driver()

    def vouch(self, partitions: Collection[TopicPartition], reply: Callable[[Membership | None], None]) -> None:
        """`reply`, soon and in the poll thread, with the membership by which these may be committed; None: not all are ours."""
        self._vouching.append((partitions, reply))
        self.wake_driver()

    def release(self, partition: int, positions: Mapping[TopicPartition, Position], term: int = 0) -> None:
        """The partition is drained: commit these last positions and let it go. The first word of a `term` of ownership counts.

        A rebalance may ask for a partition that a stop has just released: the answer to that one has no positions.
        """
        if self._released.get(partition, (-1, {}))[0] != term:
            self._released[partition] = (term, positions)

    def _last_word(self, partition: int) -> Mapping[TopicPartition, Position] | None:
        term, positions = self._released.get(partition, (-1, None))
        return positions if term == self._terms.get(partition, 0) else None

    def driven_by(self, soon: Callable[[], None]) -> None:
        """On the memory cluster: `soon` is called when a step has something to do, so that nobody has to poll for it."""
        self.wake_driver = soon
        self._consumer.activity(soon)  # type: ignore[attr-defined]

    # -- commands, run in the poll thread

    def add(self, positions: Mapping[TopicPartition, int]) -> None:
        """Fetch these from these offsets (again: a seek). Partitions that were let go meanwhile are left out, here and below."""
        ours = self._ours()
        positions = {tp: offset for tp, offset in positions.items() if tp in ours}
        self._damaged.sought(positions)
        fresh = {tp: offset for tp, offset in positions.items() if tp not in self._added}
        for tp, offset in positions.items():
            if tp in self._added:
                self._consumer.seek(tp, offset)
        if fresh:
            self._consumer.add(fresh)
            self._added.update(fresh)
            # What was added anew is not paused: a pause that is still in the books was meant for an earlier ownership.
            self._paused.difference_update(fresh)
            if self._held:
                self._consumer.pause(fresh)

    def reopen(self, terms: Mapping[int, int]) -> None:
        """Start over with these, where the cluster says they are; those that went, or came anew meanwhile, are left out."""
        for partition, term in terms.items():
            if partition in self._owned and partition not in self._opening and self._terms.get(partition) == term:
                self._stop_fetching(self._owned[partition])
                self._opening[partition] = _Opening()

    def _vouch(self) -> None:
        """See `vouch`. Member and ownership are looked at in one moment of this thread, where callbacks change them (rule h)."""
        while self._vouching:
            partitions, reply = self._vouching.popleft()
            member, ours = self._consumer.membership(), self._ours()
            fine = (
                member is not None and ours.issuperset(partitions) and self._tenure.is_of(member.member_id, partitions)
            )
            reply(member if fine else None)

    def _ours(self) -> set[TopicPartition]:
        return {tp for unit in self._owned.values() for tp in unit}

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        ours = self._ours()
        wanted = [tp for tp in partitions if tp in ours and tp not in self._paused]
        self._paused.update(wanted)
        self._consumer.pause([tp for tp in wanted if tp in self._added])

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        wanted = [tp for tp in partitions if tp in self._paused]
        self._paused.difference_update(wanted)
        if not self._held:
            self._consumer.resume([tp for tp in wanted if tp in self._added])

    def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """One OffsetCommit; the answer is posted as `Committed`.

        Only for partitions that are still ours: the broker takes a commit of any partition from any living member (rule h),
        so one that was asked for just before a rebalance would put the new owner's progress back.
        """
        ours, asked = self._ours(), positions
        refused = self._tenure.ended([tp for tp in positions if tp in ours])
        positions = {tp: position for tp, position in positions.items() if tp in ours and tp not in refused}
        if not positions:
            self._post(Committed(refused, asked))
            return
        try:
            self._consumer.commit(positions, lambda errors: self._post(Committed({**refused, **errors}, asked)))
        except PipelineError as error:
            known = error if isinstance(error, ClusterError) else ClusterError(str(error))
            self._post(Committed({**refused, **dict.fromkeys(positions, known)}, asked))

    def claim(
        self,
        partition: int,
        epoch: int,
        lanes: Mapping[TopicPartition, Position],
        source: Mapping[TopicPartition, Position],
    ) -> None:
        """Make ownership durable, then start fetching: the lanes' progress first, then the source's with the new epoch and fences.

        The other way round, a crash between the two would forget which lane records a zombie wrote. `Claimed` is posted after
        the seeks, so that the engine can tell records of the rebuild from those to process.
        """
        if not self._ours().issuperset(source):
            return
        for positions in (lanes, source):
            errors = self._tenure.commit_now(positions)
            bad = next(((tp, error) for tp, error in errors.items() if error is not None), None)
            if bad is None:
                continue
            # Also when it says "fenced": between two generations that passes, and the partition stays ours without another
            # callback; if it is not ours any more, the rebalance takes it out of the openings.
            self._again(partition, bad[1])
            return
        self._rebuilding.discard(partition)
        self._stop_fetching(self._store(partition))  # it is read: from now on only we write to it
        self.add({tp: position.offset for positions in (lanes, source) for tp, position in positions.items()})
        self._post(Claimed(partition, epoch))

    # -- the loop

    def subscribe(self) -> None:
        self._consumer.subscribe(self._policy.source, self)

    def step(self, timeout_s: float) -> int:
        """Commands, openings, then one poll. Returns how many records were fetched."""
        while self._commands:
            self._commands.popleft()()
        self._vouch()
        timeout_s = min(timeout_s, self._policy.poll_s)
        if self._opening:
            self._open_due()
            timeout_s = min(timeout_s, 0.02)
        held = self._hold_if_full()
        messages = (
            self._consumer.poll(self._policy.batch, 0.0 if held and not self._held else timeout_s)
            if not held or self._held
            else []
        )
        self.polled_at = self._monotonic()
        if self._damaged:
            messages = self._damaged.sift(messages, self._paused, held)
        if messages:
            self._fetched += len(messages)
            self._post(Fetched(messages))
        if self._rebuilding:
            self._tell_ends()
        return len(messages)

    def _tell_ends(self) -> None:
        """After the records before them; the end of one with a damaged batch is met while it is measured, and says nothing."""
        ends = {
            tp: at
            for tp, at in self._consumer.ended().items()
            if tp.partition in self._rebuilding and tp not in self._damaged
        }
        if news := {tp: at for tp, at in ends.items() if self._ends_told.get(tp) != at}:
            self._post(Ended(news))
        self._ends_told = ends

    def _hold_if_full(self) -> bool:
        """True when nothing should be fetched now. A short while is waited out; a longer one pauses every partition."""
        if not self._room.update(self._backlog(self._fetched)):
            self._full_since = None
            if self._held:
                self._held = False
                self._consumer.resume(self._added - self._paused)
            return False
        now = self._monotonic()
        if self._full_since is None:
            self._full_since = now
        if not self._held and now - self._full_since > FULL_BEFORE_PAUSE_S:
            self._held = True
            self._consumer.pause(self._added)
        return True

    @property
    def waiting_for_room(self) -> bool:
        """Full, but not for long enough to pause: the driver sleeps a little instead of polling."""
        return self._full_since is not None and not self._held

    def close(self) -> None:
        """Commit what was released and leave the group."""
        last = {tp: position for number in self._owned for tp, position in (self._last_word(number) or {}).items()}
        self._tenure.commit_last(last)
        self._released = {number: (self._terms.get(number, 0), {}) for number in self._owned}
        self._consumer.close()

    # -- opening a partition

    def _open_due(self) -> None:
        now = self._monotonic()
        due = [partition for partition, opening in self._opening.items() if opening.at_s <= now]
        if not due:
            return
        self._try_open(due)

    def _try_open(self, partitions: Sequence[int]) -> None:
        try:
            self._open(partitions)
        except (TopologyError, ClusterError) as error:
            if len(partitions) > 1 and not isinstance(error, ClusterUnavailable):
                # It may be the fault of one (a lane that has fewer partitions than the source): the others go on.
                for partition in partitions:
                    self._try_open([partition])
                return
            for partition in partitions:
                if isinstance(error, ClusterError):
                    self._again(partition, error)
                else:
                    self._post(Refused(partition, error))
                    del self._opening[partition]

    def _again(self, partition: int, error: PipelineError) -> None:
        opening = self._opening.setdefault(partition, _Opening())
        opening.at_s = self._monotonic() + OPEN_RETRY_S[min(opening.tries, len(OPEN_RETRY_S) - 1)]
        opening.tries += 1
        self._post(Refused(partition, error))

    def _open(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            # Opened before, and its claim failed: a record fetched past the fence must not reach the next rebuild first.
            self._stop_fetching(self._owned.get(partition, ()))
        tries = max(self._opening[partition].tries for partition in partitions)
        for answer in self._opener.read(partitions, TRY_TIMEOUTS_S[min(tries, len(TRY_TIMEOUTS_S) - 1)]):
            partition = answer.partition
            del self._opening[partition]
            if isinstance(answer, Opened):
                source = TopicPartition(self._policy.source, partition)
                lanes = (TopicPartition(lane.topic, partition) for lane in answer.lanes)
                self._owned[partition] = (source, *lanes, *self._store(partition))
                self._terms[partition] = term = self._terms.get(partition, 0) + 1
                self._rebuilding.add(partition)
                answer = replace(answer, term=term)
            self._post(answer)

    # -- RebalanceListener

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._tenure.begin(partitions)
        for tp in partitions:
            self._released.pop(tp.partition, None)
            self._opening[tp.partition] = _Opening()

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        self._vouch()  # the last transaction of what is let go
        numbers = tuple(tp.partition for tp in partitions)
        for number in numbers:
            self._opening.pop(number, None)
        owned = [number for number in numbers if number in self._owned]
        if self._revoking != numbers:
            self._revoking = numbers
            if owned:
                self._post(Revoking(tuple(owned)))
            for number in numbers:
                if number not in owned:
                    self._post(Refused(number, None))
        words = [self._last_word(number) for number in owned]
        if None in words:
            return False
        last = {tp: position for word in words for tp, position in (word or {}).items()}
        self._tenure.commit_last(last)
        self._forget(owned)
        self._revoking = ()
        return True

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        numbers = [tp.partition for tp in partitions]
        for number in numbers:
            self._opening.pop(number, None)
        self._revoking = ()
        self._post(Lost(tuple(numbers)))
        self._forget([number for number in numbers if number in self._owned])

    def fault(self, fault: FetchFault) -> None:
        if not self._damaged.told(fault):
            self._post(Faulted(fault))

    def _store(self, partition: int) -> tuple[TopicPartition, ...]:
        state = self._policy.state
        return () if state is None else (TopicPartition(state, partition),)

    def _forget(self, partitions: Collection[int]) -> None:
        for number in partitions:
            gone = self._owned.pop(number)
            self._rebuilding.discard(number)
            self._released.pop(number, None)
            self._stop_fetching(gone)

    def _stop_fetching(self, partitions: Collection[TopicPartition]) -> None:
        if partitions:
            self._consumer.remove(partitions)
            self._damaged.forget(partitions)
            self._added.difference_update(partitions)
            self._paused.difference_update(partitions)
