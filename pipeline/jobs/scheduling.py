"""From a call of `app.schedule` to a checked schedule."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pipeline.jobs.asking import Asker
from pipeline.model.cron import Misfire
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import JobOptions, check_schedule, check_text
from pipeline.model.jobs import Schedule

NOT_OF_SCHEDULES = ("delay", "run_at", "expires", "dedup_id", "dedup_window")
"""Each tick is one job, at its time."""


def schedule_of(
    asker: Asker, name: str, given: object, cron: str, zone: str, misfire: str, options: dict[str, Any]
) -> Schedule:
    """Raises InvalidJob for the input, ConfigurationError for all else. The same words give an equal schedule always."""
    check_text("name", name)
    known = [each.name for each in fields(JobOptions) if each.name not in NOT_OF_SCHEDULES]
    for option in options:
        if option in NOT_OF_SCHEDULES:
            raise ConfigurationError(
                f"schedule {name!r} may not have {option}: each of its ticks is one job, at its time"
            )
        if option not in known:
            raise ConfigurationError(f"schedule has no argument {option!r}: there are {', '.join(known)}")
    request = asker.request(given, JobOptions(**options), 0, name)
    return check_schedule(Schedule(name, cron, request, zone, misfire_of(misfire)))


def misfire_of(text: str) -> Misfire:
    try:
        return Misfire(text)
    except ValueError:
        raise ConfigurationError(
            f"misfire={text!r:.40} must be skip, once or all: what becomes of ticks that nobody was there to fire in time"
        ) from None
