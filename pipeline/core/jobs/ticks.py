"""Schedules: which ticks of a cron expression fire now.

A tick within the grace is in time, and fires always. Later it is missed, and the schedule's misfire policy decides: none fires, or
the last one, or all of them, some at once.
"""

from __future__ import annotations

from pipeline.model.cron import Cron, Misfire
from pipeline.model.job_policies import QueuePolicy
from pipeline.model.jobs import JobRequest, Schedule, ScheduleRecord


class Ticking:
    """A schedule at work. `number`: for schedules of one instant, who comes first. Raises `ConfigurationError` as `Cron` does."""

    __slots__ = ("cron", "last_ms", "next_ms", "number", "offset", "paused", "schedule", "timer_ms")

    def __init__(self, record: ScheduleRecord, number: int) -> None:
        self.schedule: Schedule = record.schedule
        self.cron = Cron(record.schedule.cron, record.schedule.zone)
        self.next_ms = record.next_ms
        self.last_ms = record.last_ms
        self.paused = record.paused
        self.offset = record.offset
        self.number = number
        self.timer_ms = 0

    def record(self) -> ScheduleRecord:
        return ScheduleRecord(self.schedule, self.next_ms, self.last_ms, self.paused, self.offset)

    def request(self, job_id: str, at_ms: int) -> JobRequest:
        """What one of its ticks asks for."""
        return self.schedule.request._replace(id=job_id, created_ms=at_ms, schedule=self.schedule.name)

    def fire(self, now_ms: int, until_ms: int, policy: QueuePolicy) -> list[int]:
        """Ticks that fire, up to `until_ms`, oldest first; the next one is set (0: it never comes). With `ticks` of the policy there may
        be more at once."""
        since_ms, in_time_ms = self.next_ms - 1, now_ms - policy.misfire_ms
        if since_ms + 1 < in_time_ms and self.schedule.misfire is not Misfire.ALL:
            missed_ms = self.cron.last_between(since_ms, in_time_ms - 1)
            if missed_ms is not None:
                since_ms = missed_ms if self.schedule.misfire is Misfire.SKIP else missed_ms - 1
        ticks = self.cron.between(since_ms, until_ms, policy.ticks)
        last_ms = ticks[-1] if ticks else since_ms
        self.next_ms = self.cron.next_after(last_ms) or 0
        if ticks:
            self.last_ms = last_ms
        return ticks
