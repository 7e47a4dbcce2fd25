"""Why a job is where it is: its state, what it waits for, and who would run it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.inspect.collect import Collector
from pipeline.jobs.counting import ENDED
from pipeline.jobs.finding import WantedJobs
from pipeline.jobs.health import QueueHealth, health_of
from pipeline.jobs.reading import QueueReader
from pipeline.jobs.rows import DUPLICATE, JobRow
from pipeline.model.cluster import GroupMember
from pipeline.model.job_policies import lane_of
from pipeline.model.job_states import JobState

LANES = ("high", "normal", "low")
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class JobExplanation:
    """`job`: None when the store has none of this id; `health` of the queue is looked at then. `first`: of a duplicate.

    `behind`: the job of the same key that must end first. `ahead`: due jobs of the same lane or a more urgent one that came before.
    `active`: of the same type that run. `owner`: the worker that has its partition; `paused`: who paused the queue, and why.
    """

    job_id: str
    job: JobRow | None
    health: QueueHealth | None = None
    first: JobRow | None = None
    behind: JobRow | None = None
    ahead: int = 0
    active: int = 0
    owner: GroupMember | None = None
    paused: str | None = None

    @property
    def ended(self) -> bool:
        return self.job is not None and self.job.state in ENDED


def explain(reader: QueueReader, job_id: str, control_topic: str, now_ms: int) -> JobExplanation:
    """The index must be up to date. May wait."""
    row = reader.job(job_id)
    if row is None:
        return JobExplanation(job_id, None, health_of(reader.cluster, reader.topics, now_ms, TIMEOUT_S))
    if row.state == DUPLICATE:
        return JobExplanation(job_id, row, first=reader.job(row.of or ""))
    if row.state in ENDED:
        return JobExplanation(job_id, row)
    collector = Collector(reader.cluster, reader.topics.layout, control_topic)
    try:
        owner, paused = collector.owners().get(row.partition), collector.paused_by()
    finally:
        collector.close()
    behind, ahead, active = None, 0, 0
    if row.state == JobState.QUEUED.value:
        behind = reader.before_in_key(row)
        ahead = reader.ahead(row)
        active = reader.count(WantedJobs(states=(JobState.RUNNING.value,), types=(row.type,)))
    return JobExplanation(job_id, row, None, None, behind, ahead, active, owner, paused)


def lane_name(priority: int) -> str:
    return LANES[lane_of(priority)]
