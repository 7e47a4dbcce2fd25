"""Jobs that jobs asked for, on their way to their inboxes: the ending of the one that asks counts when all of them are acknowledged.

A crash in between runs it again, and it asks for the same jobs, of the same ids. What is refused is tried again for as long as the
partition is ours, unless that can't help (a record too large, a right that is missing), or the job is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from pipeline.core.jobs.job import Job
from pipeline.model.errors import BufferFull, ClusterError, NotAuthorized, RecordTooLarge
from pipeline.model.jobs import JobEnding
from pipeline.model.outcome import Cancelled, Failure, FailureKind
from pipeline.worker.jobs.host import Host
from pipeline.worker.jobs.runs import Run
from pipeline.worker.sending import RESEND_MS, Outlet, OutRecord

REFUSED = "OutputRefused"


class _HandOn:
    """What one execution asked for. `left`: records that are not acknowledged."""

    __slots__ = ("ending", "left", "run", "tries")

    def __init__(self, run: Run, ending: JobEnding) -> None:
        self.run = run
        self.ending = ending
        self.left = len(run.asked)
        self.tries = 0


class HandOns:
    """Owned by the engine's thread; answers come in any thread, `wake` is called with each, and they are heard in `step`."""

    def __init__(self, outlet: Outlet, ended: Callable[[Run, JobEnding], None], wake: Callable[[], None]) -> None:
        self._outlet = outlet
        self._ended = ended
        self._wake = wake
        self._open: dict[_HandOn, None] = {}  # a set that keeps its order
        self._answers: deque[tuple[_HandOn, OutRecord, Exception | None]] = deque()
        self._again: deque[tuple[int, _HandOn, OutRecord]] = deque()
        self.last_error: Exception | None = None

    def __len__(self) -> int:
        return len(self._open)

    def holds(self, host: Host) -> bool:
        return any(each.run.host is host for each in self._open)

    def start(self, run: Run, ending: JobEnding, now_ms: int) -> None:
        """`ended` is called when all is acknowledged."""
        hand_on = _HandOn(run, ending)
        self._open[hand_on] = None
        for record in run.asked:
            self._send(hand_on, record, now_ms)

    def _send(self, hand_on: _HandOn, record: OutRecord, now_ms: int) -> None:
        answered = partial(self._answered, hand_on, record)
        try:
            self._outlet.send(record.topic, record.key, record.value, record.headers, -1, 0, answered)
        except (BufferFull, ClusterError) as error:
            self._refused(hand_on, record, error, now_ms)

    def _answered(self, hand_on: _HandOn, record: OutRecord, error: ClusterError | None, _offset: int) -> None:
        self._answers.append((hand_on, record, error))
        self._wake()

    def _refused(self, hand_on: _HandOn, record: OutRecord, error: Exception, now_ms: int) -> None:
        self.last_error = error
        if isinstance(error, RecordTooLarge | NotAuthorized):
            large = isinstance(error, RecordTooLarge)
            what = f"is larger than {record.topic} takes" if large else f"may not be written to {record.topic}"
            kind = FailureKind.TERMINAL if large else FailureKind.RETRYABLE
            hand_on.ending = Failure(kind, REFUSED, type(error).__name__, f"a job that it asks for {what}: {error}")
            self._acknowledged(hand_on)
            return
        self._again.append((now_ms + RESEND_MS[min(hand_on.tries, len(RESEND_MS) - 1)], hand_on, record))
        hand_on.tries += 1

    def _acknowledged(self, hand_on: _HandOn) -> None:
        hand_on.left -= 1
        if not hand_on.left and hand_on in self._open:
            del self._open[hand_on]
            self._ended(hand_on.run, hand_on.ending)

    def step(self, now_ms: int) -> int | None:
        """Hear what was answered, send again what is due; gives when to ask again (None: nothing waits for that)."""
        while self._answers:
            hand_on, record, error = self._answers.popleft()
            if hand_on not in self._open:
                continue
            if error is None:
                self._acknowledged(hand_on)
            else:
                self._refused(hand_on, record, error, now_ms)
        waiting, self._again = self._again, deque()
        for at_ms, hand_on, record in waiting:
            if hand_on not in self._open:
                continue
            if at_ms <= now_ms:
                self._send(hand_on, record, now_ms)
            else:
                self._again.append((at_ms, hand_on, record))
        return min((at_ms for at_ms, _, _ in self._again), default=None)

    def cancel(self, job: Job, version: int) -> None:
        """Its job was cancelled meanwhile. Some of what it asked for may be there all the same."""
        for each in [each for each in self._open if each.run.job is job and each.run.version == version]:
            del self._open[each]
            self._ended(each.run, Cancelled())

    def forget(self, host: Host) -> None:
        """Its partition is not ours any more: whoever has it runs the job again."""
        for each in [each for each in self._open if each.run.host is host]:
            del self._open[each]
