"""From the arguments of `@app.job` and the handler's signature to a checked `JobType`, and the queues of an application."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError, InvalidJob
from pipeline.model.job_batches import ItemResult
from pipeline.model.job_policies import (
    Duration,
    JobPolicy,
    QueuePolicy,
    RetentionPolicy,
    check_job,
    check_queue,
    check_text,
    known_arguments,
)
from pipeline.model.job_resources import JobResources
from pipeline.model.job_types import JobQueue, JobType
from pipeline.model.job_webhooks import check_type_name
from pipeline.model.outcome import Warn
from pipeline.model.permissions import check_permissions
from pipeline.model.policies import (
    Backoff,
    BatchPolicy,
    ExecutorKind,
    FlowPolicy,
    HandlerKind,
    RetryPolicy,
    Subscription,
    check_flow,
)
from pipeline.model.topics import check_topic
from pipeline.worker.declaring import is_async
from pipeline.worker.jobs.webhooks import Webhooks

DEFAULT_QUEUE = "default"
RUNNING_AT_ONCE = 100
_POLICIES: WeakKeyDictionary[Callable[..., Any], tuple[str, JobPolicy]] = WeakKeyDictionary()
"""Name and policy of handlers that were declared, for tests of a handler alone."""


@dataclass(frozen=True, slots=True)
class JobDeclaration:
    """The arguments of `@app.job` as they were given. None: as `JobPolicy` has it."""

    name: str
    queue: str = DEFAULT_QUEUE
    timeout: Duration | None = None
    attempts: int | None = None
    backoff: Backoff | None = None
    jitter: float | None = None
    concurrency: int | None = None
    priority: int | None = None
    cost: int | None = None
    max_stalled_count: int | None = None
    dead_letter: bool | None = None
    retention: RetentionPolicy | None = None
    dedup_window: Duration | None = None
    release_on_failure: bool | None = None
    terminal: tuple[type[BaseException], ...] | None = None
    permissions: typing.Iterable[str] | None = None
    secrets: typing.Literal["refuse", "allow"] | None = None
    blobs: typing.Literal["delete", "keep"] | None = None
    batch: BatchPolicy | None = None
    executor: ExecutorKind | None = None
    resources: JobResources | None = None

    def policy(self) -> JobPolicy:
        """Raises ConfigurationError naming the argument, before there is a handler."""
        check_type_name(check_text("name", self.name))
        _check_queue_name(self.queue)
        plain = (
            *("attempts", "backoff", "jitter", "concurrency", "priority", "cost", "max_stalled_count", "dead_letter"),
            *("retention", "release_on_failure", "terminal", "secrets", "blobs", "batch"),
            *("executor", "resources"),
        )
        given: dict[str, Any] = {name: value for name in plain if (value := getattr(self, name)) is not None}
        if self.timeout is not None:
            given["timeout_ms"] = parse_duration_ms(self.timeout, "timeout")
        if self.dedup_window is not None:
            given["dedup_window_ms"] = parse_duration_ms(self.dedup_window, "dedup_window")
        if self.permissions is not None:
            given["permissions"] = check_permissions(self.permissions)
        return check_job(JobPolicy(**given))

    def type(self, handler: Callable[..., Any]) -> JobType:
        takes, gives, alone = _signature(self.name, handler, self.batch is not None)
        return JobType(self.name, handler, self.policy(), takes, gives, is_async(handler), alone)


def _check_queue_name(name: str) -> None:
    check_topic(f"jobs.{check_text('queue', name)}", "queue")


def _signature(name: str, handler: Callable[..., Any], batch: bool) -> tuple[object, object, bool]:
    """What it takes and gives (a batch handler: for each job), and whether it wants no context."""
    target = handler if inspect.isroutine(handler) else type(handler).__call__
    try:
        hints = typing.get_type_hints(target)
        parameters = list(inspect.signature(handler).parameters.values())
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"the handler of job {name!r} has annotations that can't be read: {error}") from error
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not 1 <= len(needed) <= 2:
        raise ConfigurationError(
            f"the handler of job {name!r} takes {len(needed)} arguments: it is called with its input, and with a JobContext "
            "if it has a second parameter"
        )
    takes = hints.get(parameters[0].name, Any)
    gives = _without_warn(hints.get("return", Any))
    if batch:
        takes, gives = _item_of(name, takes), _item_result(gives)
    for what, hint in (("input", takes), ("result", gives)):
        try:
            TypeAdapter(hint)
        except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as error:
            raise ConfigurationError(
                f"the {what} of job {name!r} is annotated as {hint!r}, which pydantic can't turn to JSON and back: "
                "use a BaseModel, a dataclass, a TypedDict (of typing_extensions before Python 3.12) or plain types"
            ) from error
    return takes, gives, len(needed) == 1 and len(parameters) == 1


def _item_of(name: str, hint: Any) -> Any:
    """What a batch handler takes of each job."""
    if hint is Any:
        return Any
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin not in (list, Sequence) or len(members) != 1:
        raise ConfigurationError(
            f"the batch handler of job {name!r} takes {hint!r}: annotate its first parameter as a list of inputs"
        )
    return members[0]


def _item_result(hint: Any) -> Any:
    """`list[ItemResult[X]]` gives X; whatever else it says, any result."""
    items = typing.get_args(hint)
    item = items[0] if len(items) == 1 else hint
    results = typing.get_args(item)
    return results[0] if typing.get_origin(item) is ItemResult and len(results) == 1 else Any


def _without_warn(hint: Any) -> Any:
    """`Warn` beside a result is not part of it."""
    members = typing.get_args(hint)
    if hint is Warn:
        return type(None)
    if Warn not in members:
        return hint
    return typing.Union[tuple(member for member in members if member is not Warn)]  # noqa: UP007


@dataclass(slots=True)
class _Queue:
    types: dict[str, JobType] = field(default_factory=dict)
    policy: QueuePolicy = field(default_factory=QueuePolicy)
    flow: FlowPolicy | None = None

    def flow_or_default(self) -> FlowPolicy:
        """As it was given; else so many at once that no type's own limit, and no batch, is out of reach."""
        if self.flow is not None:
            return self.flow
        policies = [declared.policy for declared in self.types.values()]
        wanted = [max(policy.concurrency, policy.batch.size if policy.batch is not None else 0) for policy in policies]
        return FlowPolicy(concurrency=max(RUNNING_AT_ONCE, *wanted, 0))


def declaration_of(name: str, arguments: dict[str, Any]) -> JobDeclaration:
    """Raises ConfigurationError for an argument that there is not."""
    return JobDeclaration(name, **known_arguments(JobDeclaration, arguments, "@app.job"))


def declared_policy(handler: Callable[..., Any]) -> tuple[str, JobPolicy] | None:
    """Name and policy that `@app.job` gave it; None for a function that is no job."""
    with contextlib.suppress(TypeError):
        return _POLICIES.get(handler)
    return None


class Queues:
    """The queues of an application, made by the first job type on them, or by name."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._queue_of: dict[str, str] = {}
        self.webhooks = Webhooks()

    def configure(
        self, name: str, policy: QueuePolicy | None, flow: FlowPolicy | None, concurrency: int | None
    ) -> None:
        _check_queue_name(name)
        made = self._queues.setdefault(name, _Queue())
        if policy is not None:
            made.policy = check_queue(policy)
        if flow is not None:
            made.flow = check_flow(flow)
        if concurrency is not None:
            made.flow = check_flow(replace(made.flow or FlowPolicy(), concurrency=concurrency))

    def add(self, declared: JobType, queue: str) -> None:
        _check_queue_name(queue)
        if declared.name in self._queue_of:
            raise ConfigurationError(f"job {declared.name!r} is declared twice: give each type of job its own name")
        self._queue_of[declared.name] = queue
        with contextlib.suppress(TypeError):  # an object that has no weak references, of a class with slots
            _POLICIES[declared.handler] = declared.name, declared.policy
        self._queues.setdefault(queue, _Queue()).types[declared.name] = declared

    def find(self, name: str) -> tuple[str, JobType] | None:
        """Queue and type."""
        queue = self._queue_of.get(name)
        return None if queue is None else (queue, self._queues[queue].types[name])

    def name_of(self, handler: Callable[..., Any]) -> str:
        """Of the job that this is the handler of. Raises InvalidJob."""
        for queue in self._queues.values():
            for declared in queue.types.values():
                if declared.handler is handler:
                    return declared.name
        raise InvalidJob(
            f"{getattr(handler, '__qualname__', handler)!r} is not a job of this application: use @app.job"
        )

    def kept_ms(self, queue: str) -> int:
        """For how long finished jobs of a queue are kept at most."""
        known = self._queues.get(queue)
        ages = [declared.policy.retention.age_ms for declared in known.types.values()] if known is not None else []
        return max(ages, default=RetentionPolicy().age_ms)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._queue_of)

    @property
    def types(self) -> dict[str, JobType]:
        return {name: declared for queue in self._queues.values() for name, declared in queue.types.items()}

    def subscriptions(self) -> tuple[Subscription, ...]:
        own = self.webhooks.types()
        return tuple(_subscription(name, made, own) for name, made in self._queues.items())


def _subscription(name: str, made: _Queue, own: typing.Mapping[str, JobType]) -> Subscription:
    """`own`: types that each queue has beside its declared ones."""
    queue = JobQueue(name, {**made.types, **own}, made.policy)
    return Subscription(
        topic=queue.topic,
        group=name,
        handler=_admitted,
        kind=HandlerKind.ASYNC,
        order="none",
        value="bytes",
        retry=RetryPolicy(tiers_ms=()),
        flow=made.flow_or_default(),
        jobs=queue,
    )


async def _admitted(_record: object) -> None:
    """Nobody calls it: records of an inbox are admitted to a board."""
