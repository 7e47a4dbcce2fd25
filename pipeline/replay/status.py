"""How far a plan is, from outside: the commits of its group, who is in it, and what operators switched."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.inspect.control import read_switches
from pipeline.inspect.positions import committed
from pipeline.model.cluster import GroupMember, TopicPartition
from pipeline.replay.joining import SKEW_MS, ResultsPlace, members_of, offsets_at
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.progress import Done, done_of
from pipeline.replay.results import read_results
from pipeline.replay.running import Surroundings, counts_by_results, finished

NOT_WRITTEN = ("failed", "undecodable")
FAILURES_MAX = 10


class Failure(NamedTuple):
    """A record that could not be written: where it lies in the source, and why."""

    partition: int
    offset: int
    outcome: str
    error: str


@dataclass(frozen=True, slots=True)
class Status:
    """`state`: "not started", "running", "paused", "interrupted" (nobody is at it), "cancelled" or "finished".

    `failures`: the first `FAILURES_MAX` of those that `counts` has as failed or undecodable.
    """

    plan: ReplayPlan
    state: str
    done: int
    total: int | None
    counts: dict[str, int]
    partitions: dict[int, Done]
    members: tuple[GroupMember, ...]
    switched: str = ""
    failures: tuple[Failure, ...] = ()

    @property
    def failed(self) -> int:
        return sum(self.counts.get(outcome, 0) for outcome in NOT_WRITTEN)

    def as_json(self) -> dict[str, Any]:
        spans = self.plan.source.spans
        return {
            "plan": self.plan.plan_id,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "counts": self.counts,
            "target": self.plan.target.text,
            "switched": self.switched,
            "failures": [failure._asdict() for failure in self.failures],
            "members": [{"member": m.member_id, "client_id": m.client_id, "host": m.host} for m in self.members],
            "partitions": [
                {"partition": p, "start": spans[p].start, "end": spans[p].end, "at": done.offset, "seen": done.seen}
                for p, done in sorted(self.partitions.items())
            ],
        }


def status_of(surroundings: Surroundings, plan: ReplayPlan) -> Status:
    """Read it now. Raises `ClusterUnavailable`."""
    group = surroundings.group(plan.plan_id)
    places = [TopicPartition(plan.source.topic, p) for p in plan.source.spans] if not plan.of_file else []
    positions = committed(surroundings.cluster, group, places)
    admin = surroundings.cluster.admin()
    try:
        members = members_of(admin, group)
    finally:
        admin.close()
    switch = read_switches(surroundings.cluster, surroundings.control).replay(plan.plan_id)
    spans, last = plan.source.spans, plan.last
    found = {place.partition: done_of(positions.get(place), spans[place.partition].start) for place in places}
    counts: Counter[str] = counts_by_results(surroundings, plan) if plan.of_file else Counter()
    for done in found.values():
        counts += done.counts
    complete = (
        finished(surroundings, plan) is not None
        if plan.of_file
        else bool(positions) and all(found[p].complete(s.end, len(last.get(p, ()))) for p, s in spans.items())
    )
    state = (
        "finished" if complete
        else switch.state if switch is not None
        else "running" if members
        else "interrupted" if positions or counts
        else "not started"
    )  # fmt: skip
    total = (plan.preview or {}).get("selected")
    switched = "" if switch is None else f"{switch.state} by {switch.who}: {switch.why}"
    failed = sum(counts.get(outcome, 0) for outcome in NOT_WRITTEN)
    failures = first_failures(surroundings, plan) if failed else ()
    return Status(plan, state, sum(counts.values()), total, dict(counts), found, tuple(members), switched, failures)


def first_failures(surroundings: Surroundings, plan: ReplayPlan) -> tuple[Failure, ...]:
    """By the results, the first in the order of the source. Raises `ClusterUnavailable`."""
    cluster = surroundings.cluster
    admin = cluster.admin()
    try:
        spec = admin.topics([surroundings.results]).get(surroundings.results)
    finally:
        admin.close()
    if spec is None:
        return ()
    place = ResultsPlace(surroundings.results, spec.partitions)
    places = {place.of(plan.source.topic, p) for p in plan.source.spans}
    starts = offsets_at(cluster, places, max(0, plan.created_ms - SKEW_MS))
    found: dict[tuple[int, int], Failure] = {}
    for batch in read_results(cluster, surroundings.results, plan=plan.plan_id, starts=starts):
        for result in batch.results:
            if result.outcome in NOT_WRITTEN:
                at = (batch.partition, result.offset)
                found[at] = Failure(*at, result.outcome, batch.errors.get(result.offset, ""))
        if len(found) > FAILURES_MAX:
            found = {at: found[at] for at in sorted(found)[:FAILURES_MAX]}
    return tuple(found[at] for at in sorted(found))
