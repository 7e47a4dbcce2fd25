"""What an application declares of jobs: its types, each with a handler and what goes in and comes out, and the queues they are on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.model.job_policies import JobPolicy, QueuePolicy

INBOX_PREFIX = "jobs."


@dataclass(frozen=True, slots=True)
class JobType:
    """A type of job. `takes`, `gives`: annotations of the handler's first parameter and of what it returns (`Any`: anything).

    `handler` gets the input and a `JobContext`, or the input alone (`alone`).
    """

    name: str
    handler: Callable[..., object]
    policy: JobPolicy = field(default_factory=JobPolicy)
    takes: Any = Any
    gives: Any = Any
    is_async: bool = True
    alone: bool = False


@dataclass(frozen=True, slots=True)
class JobQueue:
    """A queue by its declared name, and the types that run on it. `types` grows while an application is being declared."""

    name: str
    types: Mapping[str, JobType]
    policy: QueuePolicy = field(default_factory=QueuePolicy)

    @property
    def topic(self) -> str:
        """Declared name of its inbox."""
        return INBOX_PREFIX + self.name
