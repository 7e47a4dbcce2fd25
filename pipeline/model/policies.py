"""Frozen policies: how a subscription retries, how much it holds, where it starts. Everything validated before anything is consumed."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeGuard, TypeVar

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.outcome import FailureKind

if TYPE_CHECKING:
    from pipeline.model.job_types import JobQueue

K = TypeVar("K")
Order = Literal["key", "key_relaxed", "none"]
Delivery = Literal["at_least_once", "exactly_once"]
ValueKind = Literal["avro", "json", "bytes"]
ExecutorKind = Literal["auto", "process"]
EXACTLY_ONCE_COMMIT_MS = 100
"""The default commit interval of exactly_once: readers see what is written this much later."""
EXACTLY_ONCE_BUFFERED_MAX = 10_000
AfterDeadLetter = Literal["release", "hold"]
"""What a record's successors do once it is given up: run, or follow it into the dead letters until its key is released."""
DEFAULT_TIERS = ("10s", "30s", "2m", "10m")


class HandlerKind(enum.Enum):
    ASYNC = "async def"
    PLAIN = "def"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before retry number n (from 1): min(max_delay, delay * factor ** (n - 1)), in milliseconds."""

    delay_ms: int
    factor: float = 2.0
    max_delay_ms: int = 600_000

    def before_retry_ms(self, retry: int) -> int:
        try:
            return int(min(self.max_delay_ms, self.delay_ms * self.factor ** (retry - 1)))
        except OverflowError:
            return self.max_delay_ms


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` counts executions in all. Without `backoff`, retry n goes to the n-th tier (the last one from then on).

    `terminal` are exception types that go to the dead letters at once; the rest is retryable.
    `jitter` is the part of an in-memory wait that is drawn at random, 0..1.
    """

    attempts: int = 5
    tiers_ms: tuple[int, ...] = (10_000, 30_000, 120_000, 600_000)
    backoff: Backoff | None = None
    jitter: float = 0.2
    terminal: tuple[type[BaseException], ...] = ()


@dataclass(frozen=True, slots=True)
class FlowPolicy:
    """Bounds. `concurrency`: running at once; `buffered`: fetched and waiting; `look_ahead`: tier records kept per lane partition.

    `dead_letter_flood`: dead letters within `flood_window_ms` that pause the subscription (0 = never).
    `commit_interval_ms`: how often progress is committed; with delivery "exactly_once" how often a transaction is, and
    `transaction_timeout_ms` after how long without an end the brokers abort one.
    `amplification_alarm`: that many records waiting behind one key (and each multiple of it) raise the alarm.
    """

    concurrency: int = 1_000
    buffered: int = 10_000
    look_ahead: int = 200
    commit_interval_ms: int = 500
    drain_timeout_ms: int = 20_000
    dead_letter_flood: int = 1_000
    flood_window_ms: int = 60_000
    amplification_alarm: int = 1_000
    transaction_timeout_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """A batch handler gets up to `size` records, waiting at most `wait_ms` for them.

    `whole`: it does all of a batch or nothing of it (a transaction, a bulk write) and returns None or raises. Then a batch may
    hold several records of a key, in their order; otherwise one, since one that fails must not be overtaken by the next.
    """

    size: int = 500
    wait_ms: int = 50
    whole: bool = False


@dataclass(frozen=True, slots=True)
class IsolationPolicy:
    """Handlers in child processes: with `executor="process"`, and where records are suspected of killing their worker.

    `processes`: how many at once (0: one per core); `deaths`: how many processes one record may take with it before it goes to
    the dead letters; `memory_bytes`: the address space of each (None: no limit).
    """

    processes: int = 0
    deaths: int = 3
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a group starts that has never committed: "earliest", "latest", or milliseconds since the epoch."""

    at: Literal["earliest", "latest"] | int = "earliest"


@dataclass(frozen=True, slots=True)
class Subscription:
    """One handler + consumer group + policies. `topic` and `group` are the names as declared (no environment prefix).

    `event_types`: the handler is only for these classes of events, others count as done (None: for all).
    `on_dead_letter`: told of each record that is given up (an alert hook). `jobs`: it is a queue, whose topic is an inbox.
    """

    topic: str
    group: str
    handler: Callable[..., object]
    kind: HandlerKind
    order: Order = "key"
    value: ValueKind = "avro"
    typed: bool = True
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    flow: FlowPolicy = field(default_factory=FlowPolicy)
    batch: BatchPolicy = field(default_factory=BatchPolicy)
    start: Start = field(default_factory=Start)
    timeout_ms: int = 300_000
    dead_letter_topic: str | None = None
    unknown_event: Literal["skip", "dead_letter"] = "skip"
    dead_letter: AfterDeadLetter = "release"
    event_types: frozenset[type] | None = None
    on_dead_letter: Callable[..., object] | None = None
    executor: ExecutorKind = "auto"
    isolation: IsolationPolicy = field(default_factory=IsolationPolicy)
    delivery: Delivery = "at_least_once"
    jobs: JobQueue | None = None


def _between(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{name}={value!r} must be a whole number from {low} to {high}")


def check_kind(name: str, value: object, kind: type[K], must_be: str) -> K:
    """The value, when it is one of `kind`, or a `ConfigurationError`."""
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name}={value!r:.80} must be {must_be}")
    return value


def check_share(name: str, value: object) -> None:
    """Of a number from 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name}={value!r:.80} must be a number between 0 and 1")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_backoff(given: object) -> Backoff:
    """The back-off, or a `ConfigurationError`."""
    backoff = check_kind("backoff", given, Backoff, 'Exponential("1s") or Fixed("1s")')
    delays = _is_number(backoff.delay_ms) and _is_number(backoff.max_delay_ms) and _is_number(backoff.factor)
    if not (delays and 0 <= backoff.delay_ms <= backoff.max_delay_ms and 1 <= backoff.factor < float("inf")):
        raise ConfigurationError(
            f"backoff={backoff!r} must have whole milliseconds, 0 <= delay <= max_delay, and a factor of at least 1"
        )
    return backoff


def check_terminal(given: object) -> tuple[type[BaseException], ...]:
    """The exception types, or a `ConfigurationError`: anything else among them would only be found out by the first failure."""
    if isinstance(given, tuple) and all(isinstance(each, type) and issubclass(each, BaseException) for each in given):
        return given
    raise ConfigurationError(f"terminal={given!r:.80} must be a tuple of exception classes, such as (ValueError,)")


def check_retry(policy: RetryPolicy) -> RetryPolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    _between("attempts", policy.attempts, 1, 1_000)
    if any(b <= a for a, b in zip(policy.tiers_ms, policy.tiers_ms[1:], strict=False)):
        raise ConfigurationError(
            f"tiers={policy.tiers_ms!r} must grow from one to the next: each tier is one constant delay"
        )
    if any(tier <= 0 for tier in policy.tiers_ms):
        raise ConfigurationError(
            "tiers must be longer than zero: for an immediate retry use backoff with a short delay"
        )
    check_terminal(policy.terminal)
    check_share("jitter", policy.jitter)
    if policy.backoff is not None:
        check_backoff(policy.backoff)
    return policy


def check_flow(policy: FlowPolicy) -> FlowPolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    _between("concurrency", policy.concurrency, 1, 100_000)
    _between("buffered", policy.buffered, 1, 1_000_000)
    _between("look_ahead", policy.look_ahead, 1, 100_000)
    _between("commit_interval_ms", policy.commit_interval_ms, 10, 60_000)
    _between("drain_timeout_ms", policy.drain_timeout_ms, 100, 3_600_000)
    _between("amplification_alarm", policy.amplification_alarm, 1, 1_000_000_000)
    _between("dead_letter_flood", policy.dead_letter_flood, 0, 1_000_000_000)
    _between("transaction_timeout_ms", policy.transaction_timeout_ms, 1_000, 900_000)
    return policy


def check_exactly_once(policy: FlowPolicy) -> FlowPolicy:
    """What a transaction asks for beyond `check_flow`. `buffered`: all that is done out of order must fit the commit's text."""
    _between("buffered with delivery='exactly_once'", policy.buffered, 1, EXACTLY_ONCE_BUFFERED_MAX)
    longest = policy.transaction_timeout_ms // 4
    _between("commit_interval_ms (at most a quarter of transaction_timeout_ms)", policy.commit_interval_ms, 10, longest)
    return policy


def check_batch(policy: BatchPolicy) -> BatchPolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    _between("batch size", policy.size, 1, 1_000_000)
    _between("batch wait_ms", policy.wait_ms, 0, 3_600_000)
    check_kind("batch whole", policy.whole, bool, "True or False")
    return policy


def check_isolation(policy: IsolationPolicy) -> IsolationPolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    _between("processes", policy.processes, 0, 1_000)
    _between("deaths", policy.deaths, 1, 1_000)
    if policy.memory_bytes is not None:
        _between("memory_bytes", policy.memory_bytes, 1 << 26, 1 << 50)
    return policy


def parse_tiers(tiers: tuple[str | float, ...] | str) -> tuple[int, ...]:
    """("10s", "2m") -> (10_000, 120_000)."""
    if isinstance(tiers, str):
        raise ConfigurationError(f"tiers={tiers!r} must be a sequence such as ('10s', '2m'), not one text")
    return tuple(parse_duration_ms(tier, "tiers") for tier in tiers)


RETRIED = frozenset({FailureKind.RETRYABLE, FailureKind.TIMED_OUT})
