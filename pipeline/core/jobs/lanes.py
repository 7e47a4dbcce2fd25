"""The lanes high, normal and low: a weighted choice between them, in which nobody starves.

Smooth weighted round robin over the lanes in which something may run. A lane whose oldest job has waited too long has the weight of
the lane above: more of the places, never all. (Moving the job itself up would put the whole of an old backlog before what is urgent.)
"""

from __future__ import annotations

from pipeline.core.jobs.fairness import Lane
from pipeline.core.jobs.job import Job, Kind
from pipeline.model.job_policies import HIGH, QueuePolicy, lane_of


class Lanes:
    __slots__ = ("_credit", "_full", "_policy", "lanes")

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._full: dict[Kind, None] = {}
        self.lanes = tuple(Lane(index, policy, self._full) for index in range(len(policy.weights)))
        self._credit = [0] * len(self.lanes)

    def __len__(self) -> int:
        return sum(lane.count for lane in self.lanes)

    def add(self, job: Job) -> None:
        self.lanes[lane_of(job.priority)].add(job)

    def remove(self, job: Job) -> None:
        self.lanes[lane_of(job.priority)].remove(job)

    def take(self, room: int, now_ms: int) -> list[Job]:
        """Up to `room` jobs in the order in which they should start; they are out, and count as running for their type."""
        taken: list[Job] = []
        if room <= 0 or not len(self):
            return taken
        for kind in list(self._full):
            if kind.running < kind.limit:
                for lane in self.lanes:
                    lane.wake(kind)
                if not any(kind.waiting):
                    del self._full[kind]
        ready = [lane for lane in self.lanes if lane.ring]
        weights = self._weights(now_ms) if len(ready) > 1 else []
        while ready and len(taken) < room:
            best = ready[0] if len(ready) == 1 else self._best(ready, weights)
            job = best.pick(now_ms)
            if job is not None:
                job.kind.running += 1
                taken.append(job)
                if len(ready) > 1:
                    self._pay(best, ready, weights)
            if not best.ring:
                ready.remove(best)
        return taken

    def _best(self, ready: list[Lane], weights: list[int]) -> Lane:
        credit = self._credit
        return max(ready, key=lambda lane: credit[lane.index] + weights[lane.index])

    def _weights(self, now_ms: int) -> list[int]:
        weights = self._policy.weights
        return [
            weights[index - 1 if index > HIGH and lane.aged(now_ms) else index] for index, lane in enumerate(self.lanes)
        ]

    def _pay(self, best: Lane, ready: list[Lane], weights: list[int]) -> None:
        """Each lane that might have been chosen earns its weight, and the one that was pays all of them."""
        credit = self._credit
        for lane in ready:
            credit[lane.index] += weights[lane.index]
            credit[best.index] -= weights[lane.index]
