"""Delivery "exactly_once": all that a subscription writes, and how far it has come, goes into one transaction per commit interval.

    opening --> open --> vouching --> committing --> opening ...
       ^          |          ^  |         | |
       |          |          |  |         | '--> undoing --> repeating: refused, as the group has a new generation: the same
       |          |          |  |         |                      |      records are written again, and vouched for again
       |          |          '--|---------|----------------------'
       |          '-------------'---------'--> in doubt: abort, every unit closed and opened again from what is committed
       '--------------------------------------------'

A record counts as settled once what it writes is in the open transaction, or waits for the next one while that is being committed:
it commits together with its position, or is done again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pipeline.core.unit import Unit
from pipeline.model.cluster import DeliveryCallback, Headers, Position, TopicPartition
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable, ProducerFenced, StaleGeneration
from pipeline.model.policies import FlowPolicy
from pipeline.model.transactions import Membership, TransactionalProducer
from pipeline.worker.committing import Committer
from pipeline.worker.inputs import Transacted
from pipeline.worker.parts import EngineParts
from pipeline.worker.stats import Stats
from pipeline.worker.transaction_parts import Bounds, Counts, Keeper, State, is_large

AGAIN_MS = (0, 100, 300, 1_000, 3_000, 10_000)
"""Between one doubt and the next opening, while no transaction gets through."""
LOOK_AGAIN_MS = 20
REPEATS_MAX, REPEAT_MS = 20, 50
"""A rebalance has a few refusals for each member; what is still refused after that is done again."""


@dataclass(slots=True)
class _Record:
    """One that waits for the next transaction."""

    arguments: tuple[str, bytes | None, bytes | None, Headers | None, int]
    delivered: DeliveryCallback | None


def transactions_of(
    parts: EngineParts, flow: FlowPolicy, committer: Committer, keeper: Keeper, stats: Stats
) -> Transactions | None:
    """None for at_least_once."""
    if parts.transactional is None:
        return None
    bounds = Bounds(parts.topics.dead_letters, flow.buffered, flow.transaction_timeout_ms // 2, flow.drain_timeout_ms)
    return Transactions(parts.transactional, committer, keeper, stats, bounds)


class Transactions:
    """The producer of one subscription, as its `Sender` sees it, and what is to be committed with its records. Engine's thread."""

    def __init__(
        self,
        producer: TransactionalProducer,
        committer: Committer,
        keeper: Keeper,
        stats: Stats,
        bounds: Bounds,
    ) -> None:
        self.state = State.IDLE
        self.counts = Counts()
        self.tally = Stats(
            failures=stats.failures, hops=stats.hops, durations=stats.durations, latencies=stats.latencies
        )
        self._producer = producer
        self._committer = committer
        self._keeper = keeper
        self._clock = keeper.clock
        self._stats = stats
        self._bounds = bounds
        self._waiting: deque[_Record] = deque()
        self._held: list[_Record] = []  # all that is in the open transaction, to be said again
        self._repeats = 0
        self._sent = 0
        self._taken = self._looked_at = 0  # records that were sent, ever; and those whose settling has been looked at
        self._number = 0
        self._failed: ClusterError | None = None
        self._positions: Mapping[TopicPartition, Position] = {}
        self._told: list[Callable[[], None]] = []
        self._closing = Stats()
        self._closing_told: list[Callable[[], None]] = []
        self._since_ms = 0
        self._closed_ms = 0
        self._hurried = self._stalled = self._stopped = False
        self._doubts = 0
        self._reopen: dict[int, int] = {}
        self._again_ms = 0

    @property
    def rebuilt(self) -> int:
        return self._producer.rebuilt

    # -- the producer's side

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        """Into the open transaction, or the next one: either way it commits together with what it settles, since positions are taken
        when nothing waits. So `delivered` is called at once, with -1 for the offset: its key goes on while a commit is under way."""
        record = _Record((topic, key, value, headers, partition), delivered)
        if delivered is not None:
            self._taken += 1
            delivered(None, -1)  # first: what the broker says of it comes in another thread, and is the second answer
        if self.state is not State.OPEN or self._waiting or not self._put(record):
            self._waiting.append(record)
            self._stall_if(len(self._waiting) >= self._bounds.waiting)

    def _put(self, record: _Record) -> bool:
        topic, key, value, headers, _ = record.arguments
        # One that is too large fails them all: which one it was is worth a call.
        asked = topic == self._bounds.dead_letters or is_large(key, value, headers)
        heard = record.delivered if asked else None
        try:
            self._producer.send(*record.arguments, delivered=heard)
        except BufferFull:
            self._hurry()
            return False
        except ClusterError as error:
            # What is open is not committed any more, so nothing is lost by going on.
            self._failed = self._failed or error
            if record.delivered is not None:
                record.delivered(error, -1)  # the client did not take it, so no report of it comes
        if not self._sent:
            self._since_ms = self._clock.now_ms
        self._sent += 1
        self._held.append(record)
        return True

    def settled(self) -> None:
        """What came of a record that was sent has been looked at."""
        self._looked_at += 1

    def after_commit(self, tell: Callable[[], None]) -> None:
        self._told.append(tell)

    def _stall_if(self, on: bool) -> None:
        if on != self._stalled:
            self._stalled = on
            self._keeper.stall(on)

    # -- the engine's side

    def start(self) -> None:
        self._begin()

    def tick(self) -> None:
        """Called every commit interval, and soon after something has to be committed."""
        self._hurried = False
        self._producer.mind()
        if self._stopped:
            return
        if self.state is State.OPEN:
            self._close()
        elif self.state is State.REOPENING:
            self._open_again()

    def _hurry(self) -> None:
        if not self._hurried:
            self._hurried = True
            self._keeper.later(1, self.tick)

    def concluded(self, unit: Unit) -> bool:
        """Is everything that this unit did committed? If not it soon is."""
        if not self._committer.positions(unit, self._clock.now_ms):
            return True
        if self.state is State.OPEN:  # else its next state asks again: no need to look every millisecond
            self._hurry()
        return False

    def lost(self) -> None:
        """Partitions went to somebody else: what was done for them must not be committed by us."""
        again = self.state in (State.UNDOING, State.REPEATING)
        if self._sent or self._waiting or again or self.state is State.VOUCHING:
            error = ClusterError("a partition was lost while a transaction held records of it")
            if self.state in (State.OPEN, State.VOUCHING):
                self.doubt(error)
            else:
                self._failed = self._failed or error
        if self.state is State.COMMITTING:
            self._repeats = REPEATS_MAX  # it may be ours again by then, with another owner's or our own new work on it

    def stop(self) -> None:
        self._stopped = True

    # -- the end of a transaction

    def _close(self) -> None:
        """Only when each of its records is settled: a record's outputs and its offset must be in one transaction."""
        if self._failed is not None:
            self.doubt(self._failed)
            return
        self._take_waiting()
        if self._waiting or self._looked_at != self._taken:
            self._hurry()
            return
        now_ms = self._clock.read()
        positions = self._committer.everything(self._keeper.owned, now_ms)
        if positions is None:
            self._wait_for_room(now_ms)
            return
        if not positions:
            if self._sent:
                self.doubt(ClusterError("a transaction holds records of partitions that are not ours any more"))
            return
        self.state, self._positions, self._closed_ms = State.VOUCHING, positions, now_ms
        self._closing, self._closing_told = self.tally.taken(), self._told
        self._told, self._sent = [], 0
        self._vouch()

    def _vouch(self) -> None:
        self._number += 1
        reply = partial(self._answer, State.VOUCHING, self._number)
        self._keeper.fetcher.vouch(self._positions.keys(), lambda membership: reply(None, membership))

    def _wait_for_room(self, now_ms: int) -> None:
        """More is done out of order than a commit can say. Nothing more is fetched for that partition by now (`Regulator`), and what
        is there goes on and fills the holes; after a while all of it is done again."""
        self._since_ms = self._since_ms or now_ms
        if now_ms - self._since_ms > self._bounds.open_ms:
            self.doubt(ClusterUnavailable("a slow record kept a transaction from saying what is done behind it"))

    def answered(self, item: Transacted) -> None:
        """An answer to what was asked last; others are out of date."""
        if item.number != self._number or self._stopped:
            return
        asked, error = item.asked, item.error
        if isinstance(error, ProducerFenced):
            self._keeper.fail(error)
        elif asked is State.VOUCHING:
            self._vouched(item.membership)
        elif error is not None:
            self._refused(asked, error)
        elif asked is State.COMMITTING:
            self._committed()
        elif asked is State.OPENING:
            self._opened()
        elif asked is State.UNDOING:
            self.state = State.REPEATING
            self._ask(self._producer.begin)
        elif asked is State.REPEATING:
            self._say_again()
        else:
            self._aborted()

    def _vouched(self, membership: Membership | None) -> None:
        if membership is None:
            self.doubt(ClusterError("a partition with records in the transaction is not ours any more"))
            return
        self.state = State.COMMITTING
        self._ask(partial(self._producer.commit, self._positions, membership))

    def _refused(self, asked: State, error: ClusterError) -> None:
        if asked is State.COMMITTING and isinstance(error, StaleGeneration) and self._repeats < REPEATS_MAX:
            self._undo()
            return
        if asked in (State.COMMITTING, State.UNDOING, State.REPEATING):
            self.doubt(error)
            return
        if str(error) != str(self.counts.why):
            self._keeper.log.warning("no transaction can be opened, so nothing is done: tried again", error=str(error))
        self.counts.why = error
        self.state = State.IDLE if asked is State.OPENING else State.IN_DOUBT
        self._doubts += 1
        self._unless_asked(self._pause_ms(), self._begin if asked is State.OPENING else self._abort)

    def _committed(self) -> None:
        now_ms = self._clock.read()
        self._committer.answered(dict.fromkeys(self._positions), now_ms, self._positions)
        self._stats.add(self._closing)
        self.counts.committed += 1
        self.counts.commit_s += (now_ms - self._closed_ms) / 1000
        self.counts.why = None
        self._doubts = 0
        for tell in self._closing_told:
            tell()
        self._closing_told, self._held, self._repeats = [], [], 0
        self._begin()
        self._keeper.wake()

    # -- the same one again

    def _undo(self) -> None:
        """Nothing of it happened, and its partitions may well be ours still: a rebalance is no reason to run handlers again."""
        self._repeats += 1
        self.counts.repeated += 1
        self.state = State.UNDOING
        self._unless_asked(REPEAT_MS, self._abort)

    def _say_again(self) -> None:
        self.state = State.VOUCHING
        records, self._held = self._held, []
        if not all(self._put(record) for record in records):
            self._failed = self._failed or ClusterError(
                "the producer's queue does not take a transaction a second time"
            )
        self._sent = 0
        if self._failed is not None:
            self.doubt(self._failed)
        else:
            self._vouch()

    # -- the next one

    def _ask(self, call: Callable[[Callable[[ClusterError | None], None]], None]) -> None:
        self._number += 1
        call(partial(self._answer, self.state, self._number))

    def _unless_asked(self, delay_ms: int, ask: Callable[[], None]) -> None:
        """Later, but only if nothing else was asked meanwhile: what one state waits for must not act in another one."""
        number = self._number
        self._keeper.later(delay_ms, lambda: ask() if number == self._number else None)

    def _answer(
        self, asked: State, number: int, error: ClusterError | None, membership: Membership | None = None
    ) -> None:
        self._keeper.post(Transacted(asked, number, error, membership))

    def _begin(self) -> None:
        if not self._stopped:
            self.state = State.OPENING
            self._ask(self._producer.begin)

    def _opened(self) -> None:
        self.state, self._since_ms, self._sent = State.OPEN, 0, 0
        if self._failed is not None:
            self.doubt(self._failed)
            return
        self._take_waiting()
        self._keeper.wake()

    def _take_waiting(self) -> None:
        while self._waiting and self._put(self._waiting[0]):
            self._waiting.popleft()
        self._stall_if(len(self._waiting) >= self._bounds.waiting)

    # -- doubt

    def doubt(self, error: ClusterError) -> None:
        """What is open is given up: every unit goes back to what is committed, and handlers run again from there."""
        self.counts.aborted += 1
        self.counts.why = error
        self._doubts += 1
        self.state = State.IN_DOUBT
        self._keeper.log.warning("transaction given up: its records are done again", error=str(error))
        self._reopen.update(self._keeper.restart())
        self._waiting.clear()
        self._told, self._closing_told, self._failed = [], [], None
        self._held, self._repeats, self._sent = [], 0, 0
        self.tally.taken()
        self._committer.given_up()
        self._stall_if(False)
        self._abort()

    def give_up(self, reason: str) -> None:
        self.doubt(ClusterError(reason))

    def _pause_ms(self) -> int:
        return max(1, AGAIN_MS[min(self._doubts, len(AGAIN_MS)) - 1])

    def _abort(self) -> None:
        if not self._stopped:
            self._ask(self._producer.abort)

    def _aborted(self) -> None:
        """Decided. Handlers that can't be cancelled may end first, so that a key is not in two of them."""
        self.state, self._since_ms = State.REOPENING, self._clock.read()
        self._again_ms = self._since_ms + self._pause_ms()
        self._keeper.later(self._pause_ms(), self.tick)

    def _open_again(self) -> None:
        now_ms = self._clock.read()
        if now_ms < self._again_ms or (
            self._keeper.executor.running() and now_ms - self._since_ms < self._bounds.rest_ms
        ):
            self._keeper.later(LOOK_AGAIN_MS, self.tick)
            return
        terms, self._reopen = self._reopen, {}
        self._keeper.fetcher.request(partial(self._keeper.fetcher.reopen, terms))
        self._begin()
