"""Which finished jobs are kept: so many of each type and outcome, for so long.

Forgotten, a job is new when its request comes again, and runs a second time. So one whose request may be read from the inbox again is
kept in any case; so is one whose dead letter, or delivery to a webhook, is not acknowledged. One that had another round is kept apart,
however few of its outcome are: a redrive that was killed does not know what it has sent, and the next one sends it again. So are
duplicates: a hundred of them would push out the job whose result they are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pipeline.core.jobs.job import Finished, Job, Kept, Kind

AGAIN_MAX = 60_000
"""Of each type on a board: more than a redrive can have sent without a record of it (`replay.options.WINDOW` and a fetch)."""
GONE_MAX = 1_000
"""So many that had another round may stand among the others before their time is over."""


def finished(kind: Kind, job: Finished, at_ms: int, good: bool) -> None:
    """It counts from now on."""
    if isinstance(job, Job):
        kept = kind.again if job.rounds else kind.good if good else kind.bad
        kept.entries.append((at_ms, job.version, job))
    else:
        kind.same.entries.append((at_ms, 0, job))


def another_round(job: Job) -> None:
    """It was given up, and is not any more: it must not be counted, or others would be forgotten for it."""
    kept = job.kind.again if job.rounds else job.kind.bad
    job.version = -1
    kept.gone += 1
    if kept.gone > GONE_MAX and kept.gone > len(kept.entries) // 2:
        kept.entries = deque(entry for entry in kept.entries if not _is_gone(*entry))
        kept.gone = 0


def forgotten(kind: Kind, now_ms: int, committed: int) -> Iterator[Finished]:
    """Those that are not kept any more, oldest first. `committed`: the inbox is not read again below this offset."""
    policy = kind.policy.retention
    sorts = (
        (kind.good, policy.completed),
        (kind.same, policy.completed),
        (kind.bad, policy.failed),
        (kind.again, AGAIN_MAX),
    )
    for kept, most in sorts:
        yield from _forgotten(kept, most, now_ms - policy.age_ms, committed)


def _forgotten(kept: Kept, most: int, finished_before_ms: int, committed: int) -> Iterator[Finished]:
    entries = kept.entries
    while entries and (len(entries) - kept.gone > most or entries[0][0] <= finished_before_ms):
        entry = entries[0]
        job = entry[2]
        if _is_gone(*entry):
            entries.popleft()
            kept.gone -= 1
            continue
        if job.offset >= committed or (isinstance(job, Job) and (job.letter_due or job.webhook_due)):
            return
        entries.popleft()
        yield job


def _is_gone(_at_ms: int, version: int, job: Finished) -> bool:
    """An operator gave it another round."""
    return isinstance(job, Job) and job.version != version
