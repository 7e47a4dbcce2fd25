"""Fairness between the tenants of one lane: deficit round robin, so that one with 100,000 jobs delays another's one by its share only.

A tenant's jobs stand in lines, one for each type, so that a type that is at its limit blocks none but itself. A share of which no
line may run leaves the round and waits at those types; it is let in again when there is room, one tenant for each place.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

from pipeline.core.jobs.job import Job, Kind
from pipeline.model.job_policies import QueuePolicy

DEAD_AGES = 1_000
"""So many that left a lane, and as many as stand in it, may be kept among those whose age counts."""

NEVER = 1 << 60
"""More rounds than any job costs."""


class Line:
    """Jobs of one tenant and type: the highest priority first, inside of it first come, first served. `count` of them wait."""

    __slots__ = ("_by_priority", "_priorities", "count", "kind")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.count = 0
        self._by_priority: dict[int, deque[Job]] = {}
        self._priorities: list[int] = []

    def add(self, job: Job) -> None:
        queue = self._by_priority.get(job.priority)
        if queue is None:
            queue = self._by_priority[job.priority] = deque()
            insort(self._priorities, job.priority)
        queue.append(job)
        self.count += 1

    def first(self) -> Job:
        while True:
            priority = self._priorities[-1]
            queue = self._by_priority[priority]
            while queue and not queue[0].laned:
                queue.popleft()  # cancelled while it waited
            if queue:
                return queue[0]
            self._drop(priority)

    def oldest(self) -> Job:
        if len(self._priorities) > 1:
            for priority, queue in list(self._by_priority.items()):
                while queue and not queue[0].laned:
                    queue.popleft()
                if not queue:
                    self._drop(priority)
            return min((queue[0] for queue in self._by_priority.values()), key=_came)
        return self.first()

    def took(self, job: Job) -> None:
        """It was the first of its priority and is none any more."""
        queue = self._by_priority[job.priority]
        queue.popleft()
        self.count -= 1
        if not queue:
            self._drop(job.priority)

    def _drop(self, priority: int) -> None:
        del self._by_priority[priority]
        self._priorities.remove(priority)


def _came(job: Job) -> tuple[int, int]:
    return job.ready_ms, job.number


def _urgent(job: Job) -> tuple[int, int, int]:
    return -job.priority, job.ready_ms, job.number


class Share:
    """A tenant's part of a lane."""

    __slots__ = ("deficit", "lines", "parked", "turns", "woken")

    def __init__(self, quantum: int) -> None:
        self.lines: dict[Kind, Line] = {}
        self.deficit = quantum
        self.turns = 1
        self.parked = False
        self.woken = False

    def choose(self, now_ms: int, policy: QueuePolicy) -> Job | None:
        """The next one of those that may run: the highest priority; at every so many-th turn the oldest, if it waited long."""
        lines = self.lines
        if len(lines) == 1:
            (line,) = lines.values()
            if line.kind.running >= line.kind.limit:
                return None
            if self.turns % policy.oldest_every == 0:
                oldest = line.oldest()
                if now_ms - oldest.ready_ms > policy.ageing_ms:
                    return oldest
            return line.first()
        free = [line for line in lines.values() if line.kind.running < line.kind.limit]
        if not free:
            return None
        if self.turns % policy.oldest_every == 0:
            oldest = min((line.oldest() for line in free), key=_came)
            if now_ms - oldest.ready_ms > policy.ageing_ms:
                return oldest
        return min((line.first() for line in free), key=_urgent)


class Lane:
    """All queued jobs of one lane, `count` of them. `ring`: shares whose turn may come; `full`: types that shares of any lane wait for."""

    __slots__ = ("_ages", "_full", "_policy", "_shares", "count", "index", "ring")

    def __init__(self, index: int, policy: QueuePolicy, full: dict[Kind, None]) -> None:
        self.index = index
        self._full = full
        self._policy = policy
        self._shares: dict[str, Share] = {}
        self._ages: deque[Job] = deque()
        self.ring: deque[Share] = deque()
        self.count = 0

    def add(self, job: Job) -> None:
        kind = job.kind
        share = self._shares.get(job.tenant)
        if share is None:
            share = self._shares[job.tenant] = Share(self._policy.quantum)
            self.ring.append(share)
        line = share.lines.get(kind)
        if line is None:
            line = share.lines[kind] = Line(kind)
            if share.parked:
                if kind.running < kind.limit:
                    self._let_in(share)
                else:
                    kind.waiting[self.index][share] = None
                    self._full[kind] = None
        line.add(job)
        self._ages.append(job)
        job.laned = True
        kind.queued += 1
        self.count += 1

    def pick(self, now_ms: int) -> Job | None:
        """The next job of the lane, out of it; None when none may run: then the ring is empty."""
        ring, policy = self.ring, self._policy
        passed, rounds = 0, NEVER
        while ring:
            share = ring[0]
            job = share.choose(now_ms, policy)
            if job is None:
                ring.popleft()
                self._park(share)
                continue
            cost = job.kind.policy.cost
            if share.deficit < cost:
                share.deficit += policy.quantum
                ring.rotate(-1)
                passed, rounds = passed + 1, min(rounds, -((share.deficit - cost) // policy.quantum))
                if passed >= len(ring):
                    self._skip(rounds)
                    passed, rounds = 0, NEVER
                continue
            share.deficit -= cost
            share.turns += 1
            share.woken = False
            lines = share.lines
            line = lines[job.kind]
            line.took(job)
            job.laned = False
            job.kind.queued -= 1
            self.count -= 1
            self._forget_ages()
            if not line.count:
                del lines[job.kind]
            if not lines:
                ring.popleft()
                del self._shares[job.tenant]
            elif share.deficit < cost:
                share.deficit += policy.quantum
                ring.rotate(-1)
            return job
        return None

    def _skip(self, rounds: int) -> None:
        """So many rounds at once, in which nobody's part is enough: what is dear would take thousands of them, one by one."""
        for share in self.ring if rounds else ():
            share.deficit += rounds * self._policy.quantum

    def remove(self, job: Job) -> None:
        """It was cancelled. It stays where it is until it comes up, and is passed over then."""
        share = self._shares[job.tenant]
        line = share.lines[job.kind]
        line.count -= 1
        job.laned = False
        job.kind.queued -= 1
        self.count -= 1
        self._forget_ages()
        if not line.count:
            del share.lines[job.kind]
            if not share.lines:
                del self._shares[job.tenant]
                if not share.parked:
                    self.ring.remove(share)

    # -- types at their limit

    def _park(self, share: Share) -> None:
        """Out of the round. One that was let in and found the place taken keeps its turn."""
        share.parked = True
        for kind in share.lines:
            waiting = kind.waiting[self.index]
            waiting[share] = None
            self._full[kind] = None
            if share.woken:
                waiting.move_to_end(share, last=False)
        share.woken = False

    def _let_in(self, share: Share) -> None:
        share.parked = False
        self.ring.append(share)

    def wake(self, kind: Kind) -> None:
        """As many shares as there is room for now. (Those that run others meanwhile, or have no such job, wait for nothing.)"""
        waiting, free = kind.waiting[self.index], kind.limit - kind.running
        while waiting and free > 0:
            share, _ = waiting.popitem(last=False)
            if share.parked and kind in share.lines:
                share.woken = True
                self._let_in(share)
                free -= 1

    # -- age

    def _forget_ages(self) -> None:
        """One more has left. Nobody may ever ask for ages here, so those that left are not kept until somebody does."""
        if len(self._ages) > 2 * self.count + DEAD_AGES:
            self._ages = deque(dict.fromkeys(job for job in self._ages if job.laned))

    def aged(self, now_ms: int) -> bool:
        """Has its oldest job waited too long?"""
        ages = self._ages
        while ages and not ages[0].laned:
            ages.popleft()
        return bool(ages) and now_ms - ages[0].ready_ms > self._policy.ageing_ms
