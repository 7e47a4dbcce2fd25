"""One partition on its way through a replay. Pure: what came in, what is under way, and what may be committed, in order.

    fetched -> batch (sent) -> acknowledged -> results written -> results acknowledged -> committed

A batch is one fetch of the partition. Batches are sent one after the other without waiting; results and commits follow in
the same order, so a commit never passes a record whose copy or whose result is not acknowledged.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.model.cluster import Message
from pipeline.model.errors import ClusterError, RecordTooLarge
from pipeline.replay.copying import Copies, Outgoing
from pipeline.replay.plan import Span
from pipeline.replay.progress import Done
from pipeline.replay.results import Result, runs


@dataclass(slots=True)
class Batch:
    """`end`: where the partition stands when it is through; `last`: how many of those sent last it holds; `seen`: records
    looked at; `before`: outcomes of those that had their result already."""

    end: int
    copies: Copies
    seen: int
    last: int = 0
    before: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        return sum(len(out.sources) for out in self.copies.outgoing)

    def unsent(self) -> Outgoing | None:
        return next((out for out in self.copies.outgoing if out.records), None)

    def acknowledged(self) -> bool:
        return all(len(out.answers.offsets) == len(out.sources) for out in self.copies.outgoing)

    def results(self) -> list[Result]:
        """One for each record. Raises the broker's error for a refusal that is not about a single record."""
        found = list(self.copies.kept)
        for out in self.copies.outgoing:
            found += _results_of(out, self.copies.errors, in_order=not self.last)
        return found


def _results_of(out: Outgoing, errors: dict[int, str], in_order: bool) -> list[Result]:
    answers = out.answers
    if not answers.errors and -1 not in answers.offsets:
        # A partition's records land in the order they were sent, whatever the order of the reports.
        targets = sorted(answers.offsets)
        if in_order:
            return runs("written", out.sources, out.partition, targets)
        return [Result(s, "written", out.partition, t) for s, t in zip(out.sources, targets, strict=True)]
    found = []
    for index, (source, target) in enumerate(zip(out.sources, answers.offsets, strict=True)):
        error = answers.errors.get(index)
        if error is None:
            found.append(Result(source, "written", out.partition, target))
            continue
        if not about_one_record(error):
            raise error
        found.append(Result(source, "failed"))
        errors[source] = str(error)
    return found


def about_one_record(error: ClusterError) -> bool:
    """Refused for what it is, not for where it goes: the others may go on."""
    return isinstance(error, RecordTooLarge) or (type(error) is ClusterError and "INVALID_RECORD" in str(error))


@dataclass(slots=True)
class Recorded:
    """Batches whose results are written to the results topic as `expected` records; `offsets` are those acknowledged."""

    batches: list[Batch]
    counts: Counter[str]
    expected: int = 0
    offsets: list[int] = field(default_factory=list)
    errors: list[ClusterError] = field(default_factory=list)


@dataclass(slots=True)
class Flow:
    """See the module. `under_way`: records of batches whose results are not acknowledged. `written`: offsets past the commit
    that have their result already (of a process that died). `held`: nothing is sent until a commit says that it is still ours.
    """

    partition: int
    span: Span
    last: tuple[int, ...]
    done: Done
    written: dict[int, str] = field(default_factory=dict)
    next_offset: int = 0
    next_last: int = 0
    open: bool = True
    draining: bool = False
    held: bool = False
    heard_s: float = 0.0
    under_way: int = 0
    pending: deque[tuple[Sequence[Message], int]] = field(default_factory=deque)
    batches: deque[Batch] = field(default_factory=deque)
    recorded: deque[Recorded] = field(default_factory=deque)
    committing: Done | None = None
    committed: Done | None = None

    def __post_init__(self) -> None:
        self.next_offset = self.done.offset
        self.next_last = self.done.last

    @property
    def fetched(self) -> bool:
        """Everything of the span was fetched."""
        return self.next_offset >= self.span.end

    @property
    def idle(self) -> bool:
        """Nothing is under way, and all that is done is committed."""
        return not self.batches and not self.recorded and self.committing is None and not self.dirty

    @property
    def dirty(self) -> bool:
        """There is something to commit."""
        return self.committed is None or (self.committed.offset, self.committed.last) != (
            self.done.offset,
            self.done.last,
        )

    @property
    def through(self) -> bool:
        """All records have their result."""
        return self.done.complete(self.span.end, len(self.last))

    def take(self, messages: Sequence[Message]) -> None:
        """What of a fetch belongs to the span waits to be sent, with where the partition stands behind it."""
        first, end, expected = messages[0].offset(), messages[-1].offset() + 1, self.next_offset
        if first < expected or end > self.span.end:
            messages = [m for m in messages if expected <= m.offset() < self.span.end]
        if end > expected:
            self.next_offset = end
            self.pending.append((messages, min(end, self.span.end)))

    def drain(self) -> None:
        """Take and start nothing more; what is under way goes through."""
        self.draining = True
        self.pending.clear()

    def abandon(self) -> None:
        """Something was refused: what lies behind it may be sent no more, and above all not be committed. What has its results
        under way already lies before it."""
        self.drain()
        self.batches.clear()

    def hold(self) -> None:
        """Send nothing before a commit made from now on was stored."""
        self.held = True
        self.committed = self.committing = None

    def nothing_more(self) -> None:
        """The rest of the span holds no records."""
        self.next_offset = self.span.end
        self.pending.append(((), self.span.end))

    def acknowledged(self) -> list[Batch]:
        """The batches at the head that are acknowledged, taken out."""
        found = []
        while self.batches and self.batches[0].unsent() is None and self.batches[0].acknowledged():
            found.append(self.batches.popleft())
        return found

    def settle(self) -> int | None:
        """Take in results that are acknowledged: what may be committed moves on. How many results; None when nothing moved.

        Raises the broker's error when results were refused.
        """
        moved: int | None = None
        while (
            self.recorded and len(self.recorded[0].offsets) + len(self.recorded[0].errors) == self.recorded[0].expected
        ):
            recorded = self.recorded.popleft()
            if recorded.errors:
                self.abandon()
                self.recorded.clear()
                raise recorded.errors[0]
            self.under_way -= sum(batch.records for batch in recorded.batches)
            before, moved = self.done, (moved or 0) + sum(recorded.counts.values())
            self.done = Done(
                max(before.offset, recorded.batches[-1].end),
                before.last + sum(batch.last for batch in recorded.batches),
                max([before.results_from, *(offset + 1 for offset in recorded.offsets)]),
                before.seen + sum(batch.seen for batch in recorded.batches),
                sum((batch.before for batch in recorded.batches), before.counts + recorded.counts),
            )
        return moved
