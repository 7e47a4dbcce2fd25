"""From the arguments of `@app.subscribe` and the handler's signature to a checked `Subscription`."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import RunEvent, epoch_ms
from pipeline.model.policies import (
    DEFAULT_TIERS,
    EXACTLY_ONCE_COMMIT_MS,
    AfterDeadLetter,
    Backoff,
    BatchPolicy,
    Delivery,
    ExecutorKind,
    FlowPolicy,
    HandlerKind,
    IsolationPolicy,
    Order,
    RetryPolicy,
    Start,
    Subscription,
    ValueKind,
    check_batch,
    check_exactly_once,
    check_flow,
    check_isolation,
    check_kind,
    check_retry,
    parse_tiers,
)


@dataclass(frozen=True, slots=True)
class Retries:
    """How failed records are tried again, where the plain arguments of `subscribe` do not say enough."""

    backoff: Backoff | None = None
    jitter: float = 0.2
    terminal: tuple[type[BaseException], ...] = ()


UnknownEvent = Literal["skip", "dead_letter"]
_KINDS: tuple[tuple[str, type, str], ...] = (
    ("retries", Retries, 'Retries(backoff=Exponential("1s"))'),
    ("flow", FlowPolicy, "FlowPolicy(commit_interval_ms=1_000)"),
    ("isolation", IsolationPolicy, "IsolationPolicy(processes=2)"),
)


@dataclass(frozen=True, slots=True)
class Declaration:
    """The arguments of `subscribe` as they were given."""

    topic: str
    group: str
    order: Order = "key"
    tiers: Sequence[str | float] = DEFAULT_TIERS
    attempts: int = 5
    concurrency: int = 1_000
    timeout: str | float = "5m"
    value: ValueKind = "avro"
    batch: int | BatchPolicy | None = None
    start: str | int = "earliest"
    retries: Retries | None = None
    flow: FlowPolicy | None = None
    dead_letter_topic: str | None = None
    unknown_event: UnknownEvent = "skip"
    dead_letter: AfterDeadLetter = "release"
    on_dead_letter: Callable[..., Any] | None = None
    executor: ExecutorKind = "auto"
    isolation: IsolationPolicy | None = None
    delivery: Delivery = "at_least_once"

    def check(self) -> None:
        """Raises ConfigurationError naming the argument, before there is a handler."""
        choices_of = (
            ("order", Order),
            ("value", ValueKind),
            ("executor", ExecutorKind),
            ("delivery", Delivery),
            ("dead_letter", AfterDeadLetter),
            ("unknown_event", UnknownEvent),
        )
        for name, allowed in choices_of:
            if getattr(self, name) not in typing.get_args(allowed):
                choices = ", ".join(typing.get_args(allowed))
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is not one of {choices}")
        for name, kind, must_be in _KINDS:
            if (given := getattr(self, name)) is not None:
                check_kind(name, given, kind, must_be)
        if self.dead_letter == "hold" and self.order != "key":
            raise ConfigurationError(
                f'dead_letter="hold" keeps the order of a key, which order={self.order!r} does not: use order="key"'
            )
        if self.dead_letter == "hold" and self.delivery == "exactly_once":
            raise ConfigurationError('dead_letter="hold" is not built for delivery="exactly_once": use one of the two')
        if parse_duration_ms(self.timeout, "timeout") <= 0:
            raise ConfigurationError("timeout must be longer than zero: it is the deadline of one attempt")
        self._retry()
        self._flow()
        self._isolation()
        self._batch()
        start_of(self.start)

    def _retry(self) -> RetryPolicy:
        more = self.retries or Retries()
        tiers_ms = parse_tiers(tuple(self.tiers) if not isinstance(self.tiers, str) else self.tiers)
        return check_retry(RetryPolicy(self.attempts, tiers_ms, more.backoff, more.jitter, more.terminal))

    def _flow(self) -> FlowPolicy:
        if self.delivery == "at_least_once":
            return check_flow(replace(self.flow or FlowPolicy(), concurrency=self.concurrency))
        flow = self.flow or FlowPolicy(commit_interval_ms=EXACTLY_ONCE_COMMIT_MS)
        return check_exactly_once(check_flow(replace(flow, concurrency=self.concurrency)))

    def _isolation(self) -> IsolationPolicy:
        return check_isolation(self.isolation or IsolationPolicy())

    def _batch(self) -> BatchPolicy | None:
        if self.batch is None:
            return None
        must_be = "a number of records or a BatchPolicy"
        if isinstance(self.batch, bool) or not isinstance(self.batch, int):
            return check_batch(check_kind("batch", self.batch, BatchPolicy, must_be))
        return check_batch(BatchPolicy(size=self.batch))

    def subscription(self, handler: Callable[..., Any]) -> Subscription:
        """The subscription of `handler`: its kind from how it is defined, its events from its first parameter."""
        if self.executor == "process" and (self.batch or is_async(handler)):
            raise ConfigurationError(
                f"executor='process' of group={self.group!r} is for a plain `def` handler without batch: "
                "a coroutine is cancelled by its timeout anyway"
            )
        _check_callable(handler, self.group)
        typed, event_types = _wanted(handler)
        batch = self._batch()
        return Subscription(
            topic=self.topic,
            group=self.group,
            handler=handler,
            kind=HandlerKind.BATCH if batch else HandlerKind.ASYNC if is_async(handler) else HandlerKind.PLAIN,
            order=self.order,
            value=self.value,
            typed=typed,
            retry=self._retry(),
            flow=self._flow(),
            batch=batch or BatchPolicy(),
            start=start_of(self.start),
            timeout_ms=parse_duration_ms(self.timeout, "timeout"),
            dead_letter_topic=self.dead_letter_topic,
            unknown_event=self.unknown_event,
            dead_letter=self.dead_letter,
            event_types=event_types,
            on_dead_letter=self.on_dead_letter,
            executor=self.executor,
            isolation=self._isolation(),
            delivery=self.delivery,
        )


def is_async(handler: Callable[..., Any]) -> bool:
    """`async def`, also as an object that is called, such as a Router."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _check_callable(handler: Callable[..., Any], group: str) -> None:
    """Raises ConfigurationError for one that can't be called as it will be: each record would die of it."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some of those built in say nothing of themselves
    try:
        signature.bind("the event", "the context")
    except TypeError as error:
        name = getattr(handler, "__name__", type(handler).__name__)
        raise ConfigurationError(
            f"the handler {name}{signature} of group={group!r} can't be called with an event and a Context ({error}): "
            f"write def {name}(event, ctx), for a batch def {name}(events, ctx)"
        ) from None


def _wanted(handler: Callable[..., Any]) -> tuple[bool, frozenset[type] | None]:
    """(typed?, the only event classes it is for) from the annotation of the first parameter."""
    target = handler if inspect.isroutine(handler) else type(handler).__call__
    try:
        hints = typing.get_type_hints(target)
        parameters = list(inspect.signature(handler).parameters)
    except (NameError, TypeError, ValueError):
        return True, None
    hint = hints.get(parameters[0]) if parameters else None
    if typing.get_origin(hint) in (list, Sequence):
        hint = typing.get_args(hint)[0]
    if hint is dict or typing.get_origin(hint) is dict:
        return False, None
    members = typing.get_args(hint) or (hint,)
    classes = [member for member in members if isinstance(member, type) and issubclass(member, RunEvent)]
    if classes and len(classes) == len(members) and RunEvent not in classes:
        return True, frozenset(classes)
    return True, None


def start_of(start: str | int) -> Start:
    """Where a new group begins. Raises ConfigurationError."""
    if isinstance(start, int) and not isinstance(start, bool):
        return Start(start)
    if start == "earliest":
        return Start("earliest")
    if start == "latest":
        return Start("latest")
    at: object = None
    with contextlib.suppress(ValueError):
        at = epoch_ms(start)
    if not isinstance(at, int):
        raise ConfigurationError(
            f"start={start!r} must be 'earliest', 'latest', a time such as 2026-01-31T12:00:00Z, or milliseconds"
        )
    return Start(at)
