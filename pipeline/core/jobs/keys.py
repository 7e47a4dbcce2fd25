"""Jobs of one key: one at a time, in the order in which they came due; a retry that waits keeps its key."""

from __future__ import annotations

from collections import Counter, deque
from itertools import chain

from pipeline.core.jobs.job import Job
from pipeline.model.job_states import TERMINAL, JobState


class KeyOrder:
    """`later`: how many jobs of a key wait for their time and come due some day."""

    __slots__ = ("_behind", "_heads", "later")

    def __init__(self) -> None:
        self._heads: dict[str, Job] = {}
        self._behind: dict[str, deque[Job]] = {}
        self.later: Counter[str] = Counter()

    def enter(self, key: str, job: Job) -> bool:
        """It is due: may it run now? Else it is behind the others of its key."""
        head = self._heads.setdefault(key, job)
        if head is job:
            return True
        self._behind.setdefault(key, deque()).append(job)
        return False

    def enter_again(self, key: str, job: Job) -> Job | None:
        """The same of a job whose entry got lost while those behind it did not: it is read again, and comes before all that were asked
        for after it and have not begun. The job whose turn it is now is its own, unless it is another's; gives the one that it
        displaced, if there is one."""
        head = self._heads.setdefault(key, job)
        if head is job:
            return None
        behind = self._behind.setdefault(key, deque())
        if _comes_after(head, job):
            self._heads[key] = job
            behind.appendleft(head)
            return head
        at = next((at for at, other in enumerate(behind) if _comes_after(other, job)), len(behind))
        behind.insert(at, job)
        return None

    def is_head(self, key: str, job: Job) -> bool:
        return self._heads.get(key) is job

    def leave(self, key: str, job: Job) -> Job | None:
        """It has its ending. The job whose turn it is now, if it was the head. (One that waited is passed over when it comes up.)"""
        if self._heads.get(key) is not job:
            return None
        behind = self._behind.get(key)
        while behind:
            following = behind.popleft()
            if following.state not in TERMINAL:
                self._heads[key] = following
                return following
        self._behind.pop(key, None)
        del self._heads[key]
        return None

    def unwritten(self, key: str) -> list[Job]:
        """Those that came due, have no ending, and no entry yet, in their order: always the last ones of the key."""
        found = []
        head = self._heads.get(key)
        for job in chain(reversed(self._behind.get(key, ())), () if head is None else (head,)):
            if job.state not in TERMINAL:
                if job.written:
                    break
                found.append(job)
        found.reverse()
        return found

    def scheduled(self, key: str) -> None:
        self.later[key] += 1

    def came_due(self, key: str) -> None:
        """One that was `scheduled` is not any more."""
        self.later[key] -= 1
        if not self.later[key]:
            del self.later[key]


def _comes_after(other: Job, job: Job) -> bool:
    """By their places in the inbox, where it has not begun."""
    return other.offset > job.offset and other.state is JobState.QUEUED and not other.started_ms and not other.attempt
