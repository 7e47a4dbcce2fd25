"""The interface to background work, whatever carries it: enqueue under a topic, consume a topic, close.

`pipeline.background` has two back-ends, one on Kafka and one in memory. Another one implements `BackgroundQueue` and runs the checks of
`pipeline.testing.queues`, which say what the words here mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import Duration, JobOptions, JobPolicy, RetentionPolicy, options_of, request_of
from pipeline.model.policies import Backoff, FlowPolicy, check_flow, check_kind

RUNNING_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class ConsumeOptions:
    """How jobs of one topic run. None: as `JobPolicy` has it; what one request asks for goes before.

    `concurrency`: at once in this process. `attempts` counts executions in all. `terminal`: exceptions that are not retried.
    `dead_letter`: whether given-up jobs are kept as dead letters, or only as failed ones. `release_on_failure`: a dedup window
    ends when its first job ends other than completed.
    """

    concurrency: int = RUNNING_AT_ONCE
    attempts: int | None = None
    backoff: Backoff | None = None
    jitter: float | None = None
    timeout: Duration | None = None
    max_stalled_count: int | None = None
    dead_letter: bool | None = None
    retention: RetentionPolicy | None = None
    release_on_failure: bool | None = None
    terminal: tuple[type[BaseException], ...] | None = None

    def of_type(self) -> dict[str, Any]:
        """What it says of the type of job: arguments of `@app.job`."""
        named = [each.name for each in fields(self) if each.name != "concurrency"]
        return {name: value for name in named if (value := getattr(self, name)) is not None}


class QueueHandle(Protocol):
    """One job, by its id. `result` raises JobUnsuccessful, JobMissing (unknown, or expired) and ResultTimeout."""

    @property
    def id(self) -> str: ...

    async def result(self, timeout: str | float | None = None) -> Any: ...


@runtime_checkable
class BackgroundQueue(Protocol):
    """Payloads and results are JSON values, or what pydantic makes such of.

    One whose `enqueue` may be called from any thread and event loop says so by an attribute `from_any_loop = True`.
    """

    async def enqueue(self, topic: str, payload: Any, options: JobOptions | None = None) -> str:
        """The job's id, once it is as safe as this queue makes it. Jobs wait for a consumer that may come later.

        Raises InvalidJob for the payload, `ConfigurationError` for an option, PublishError when it was not taken.
        """
        ...

    async def consume(self, topic: str, handler: Callable[..., Any], options: ConsumeOptions | None = None) -> None:
        """Runs `handler(payload)` or `handler(payload, job)` for jobs of this topic from now on, until `close`; returns at once.

        `async def` or `def`; it may be called again for a job whose worker died. It returns the result, raises Retry or Reject to
        steer, and anything else is a failed attempt. What does not fit its annotation is given up.
        """
        ...

    async def close(self) -> None:
        """Nothing new starts; what runs may end. Closing twice is fine."""
        ...


@runtime_checkable
class ResultQueue(BackgroundQueue, Protocol):
    """One that also keeps what came of its jobs."""

    def handle(self, topic: str, job_id: str) -> QueueHandle: ...


def given_options(given: JobOptions | None) -> JobOptions:
    """Those of a request. Raises ConfigurationError for what is none of them, such as a dict."""
    return JobOptions() if given is None else check_kind("options", given, JobOptions, "JobOptions(priority=1, ...)")


def consuming(given: ConsumeOptions | None) -> ConsumeOptions:
    """Those of a consumer. Raises ConfigurationError for what is none of them, and for a concurrency that can't be."""
    options = ConsumeOptions() if given is None else given
    check_kind("options", options, ConsumeOptions, "ConsumeOptions(attempts=3, ...)")
    check_flow(FlowPolicy(concurrency=options.concurrency))
    return options


def check_options(topic: str, options: JobOptions) -> None:
    """Of a job that is none of an application. Raises ConfigurationError for what only those have."""
    if options.webhook is not None:
        raise ConfigurationError(
            f"webhook={options.webhook!r:.80} of a job on topic {topic!r}: only jobs of @app.job tell webhooks, whose workers declare them"
        )


def job_options(given: dict[str, Any]) -> JobOptions:
    """Options by name, checked as far as they can be without a job. Raises `ConfigurationError` naming the option."""
    options = options_of(given)
    request_of("any", "", b"", options, JobPolicy(), 0)
    return options
