"""Which finished jobs are kept: so many of each type and outcome, for so long.

Forgotten, a job is new when its request comes again, and runs a second time. So one whose request may be read from the inbox again is
kept in any case. One that had another round is kept apart, however few of its outcome are: a redrive that was killed does not know what
it has sent, and the next one sends it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pipeline.core.jobs.job import Finished, Job, Kind

AGAIN_MAX = 60_000
"""Of each type on a board: more than a redrive can have sent without a record of it (`replay.options.WINDOW` and a fetch)."""


def finished(kind: Kind, job: Finished, at_ms: int, good: bool) -> None:
    """It counts from now on."""
    if isinstance(job, Job):
        kept = kind.again if job.rounds else kind.good if good else kind.bad
        kept.append((at_ms, job.version, job))
    else:
        kind.good.append((at_ms, 0, job))


def forgotten(kind: Kind, now_ms: int, committed: int) -> Iterator[Finished]:
    """Those that are not kept any more, oldest first. `committed`: the inbox is not read again below this offset."""
    policy = kind.policy.retention
    for kept, most in ((kind.good, policy.completed), (kind.bad, policy.failed), (kind.again, AGAIN_MAX)):
        yield from _forgotten(kept, most, now_ms - policy.age_ms, committed)


def _forgotten(
    kept: deque[tuple[int, int, Finished]], most: int, finished_before_ms: int, committed: int
) -> Iterator[Finished]:
    while kept and (len(kept) > most or kept[0][0] <= finished_before_ms):
        _, version, job = kept[0]
        if isinstance(job, Job):
            if job.version != version:  # an operator gave it another round
                kept.popleft()
                continue
            if job.letter_due:
                return
        if job.offset >= committed:
            return
        kept.popleft()
        yield job
