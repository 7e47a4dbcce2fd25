"""Frozen policies of jobs: what a type of job asks for, how a queue chooses, and what one request may ask for instead.

Everything is checked where it is said, in one sentence that names the field.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pipeline.model.cron import Cron
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_resources import NOT_STATED, JobResources, check_resources
from pipeline.model.jobs import JobRequest, Schedule
from pipeline.model.permissions import check_permissions
from pipeline.model.policies import (
    Backoff,
    BatchPolicy,
    ExecutorKind,
    check_backoff,
    check_kind,
    check_share,
    check_terminal,
)

DAY_MS = 86_400_000
INLINE_BYTES_MAX = 900_000
"""Of a job's input and its result together: an entry with its history, error and log fits into what topics take by default."""
ATTEMPTS_MAX = 1_000
PRIORITY_MAX = 1_000_000
TEXT_MAX = 500
"""Characters of keys, tenants, ids and tags: they are in every entry, and a topic's record key is made of some."""
TAGS_MAX = 50
RUN_AT_MIN = 10**11
"""March 1973 in milliseconds; in seconds the year 5138."""
HIGH, NORMAL, LOW = 0, 1, 2
"""The lanes, the most urgent first."""
HIGH_FROM, NORMAL_FROM = 10, 0

Duration = str | float


def lane_of(priority: int) -> int:
    return NORMAL if NORMAL_FROM <= priority < HIGH_FROM else HIGH if priority >= HIGH_FROM else LOW


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Finished jobs are kept up to these numbers for each type, and for no longer than `age_ms`.

    Those that had another round (a retry, a redrive) don't count: they are kept for `age_ms`, and told from a letter that comes twice. Nor
    do duplicates, of which as many are kept as of completed ones.
    """

    completed: int = 100
    failed: int = 500
    age_ms: int = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """How jobs of one type run.

    `attempts` counts executions in all; `backoff` is the wait before a retry, `jitter` the part of it that is drawn on top, 0..1.
    `concurrency`: running at once in one process (0: no limit of its own). `cost`: what one of them counts in a tenant's share.
    `max_stalled_count`: so often may its worker die with it before it is given up. `dedup_window_ms`: where a request has an id and
    names no window; `release_on_failure`: the window ends when its first job ends other than completed. `terminal`: exception
    types that are not retried. `dead_letter`: whether given-up jobs are written to the dead letters. `permissions`: what a worker must
    have been granted to run one; `secrets`: whether an input that looks as if it held a secret is refused.
    `blobs`: whether large inputs and results are deleted when the job is forgotten, or kept for whoever runs the store to delete.
    `batch`: the handler gets so many jobs in one call. `executor="process"`: each job runs in a child process, which its deadline kills and
    where `resources` hold; elsewhere they are only stated.
    """

    attempts: int = 5
    backoff: Backoff = field(default_factory=lambda: Backoff(1_000))
    jitter: float = 0.2
    timeout_ms: int = 300_000
    concurrency: int = 0
    priority: int = 0
    cost: int = 1
    max_stalled_count: int = 3
    dead_letter: bool = True
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    dedup_window_ms: int = DAY_MS
    release_on_failure: bool = False
    terminal: tuple[type[BaseException], ...] = ()
    permissions: frozenset[str] = frozenset()
    secrets: Literal["refuse", "allow"] = "refuse"
    blobs: Literal["delete", "keep"] = "delete"
    batch: BatchPolicy | None = None
    executor: ExecutorKind = "auto"
    resources: JobResources = NOT_STATED


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How one owner chooses among its jobs.

    `weights` of the lanes high, normal, low; a lane whose oldest job waited longer than `ageing_ms` has the weight of the lane above.
    Of a tenant's turns every `oldest_every`-th is for its oldest job that waited so long, whatever its priority. `quantum`: a
    tenant's share of each round, in `JobPolicy.cost`. `misfire_ms`: a tick that is later than this was missed. `ticks`: so many
    ticks of one schedule fire at once; `due`: so many jobs come due at once, or a million of one instant would hold up all else.
    """

    weights: tuple[int, int, int] = (16, 4, 1)
    ageing_ms: int = 60_000
    oldest_every: int = 4
    quantum: int = 1
    misfire_ms: int = 60_000
    ticks: int = 1_000
    due: int = 5_000


def Fixed(delay: Duration = "1s") -> Backoff:
    """The same wait before each retry."""
    delay_ms = parse_duration_ms(delay, "delay")
    return check_backoff(Backoff(delay_ms, 1.0, delay_ms))


def Exponential(delay: Duration = "1s", *, max_delay: Duration = "10m", factor: float = 2.0) -> Backoff:
    """min(max_delay, delay * factor ** (n - 1)) before retry n, from 1."""
    return check_backoff(Backoff(parse_duration_ms(delay, "delay"), factor, parse_duration_ms(max_delay, "max_delay")))


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What one request may ask for, as people write it: durations as "5m" or seconds, `run_at` as milliseconds since the epoch.

    None: as the type's policy says. `delay` and `expires` count from now by the caller's clock, and are kept by the workers', which is
    the cluster's; `run_at` is in the latter. `expires`: not started within this time after it was asked for (or after `run_at`), never.
    `webhook`: the name of one that the application declared, which hears of the job's ending.
    """

    delay: Duration | None = None
    run_at: int | None = None
    priority: int | None = None
    attempts: int | None = None
    backoff: Backoff | None = None
    timeout: Duration | None = None
    dedup_id: str | None = None
    dedup_window: Duration | None = None
    key: str | None = None
    tenant: str = ""
    workflow_id: str | None = None
    expires: Duration | None = None
    webhook: str | None = None
    tags: tuple[str, ...] = ()


def options_of(arguments: dict[str, Any]) -> JobOptions:
    """Options of a request by their names. Raises ConfigurationError for one that there is not."""
    return JobOptions(**known_arguments(JobOptions, arguments, "enqueue"))


def known_arguments(kind: Any, arguments: dict[str, Any], what: str) -> dict[str, Any]:
    """The arguments, when `kind`, a dataclass, has all of them; `name` is given apart."""
    names = [each.name for each in fields(kind) if each.name != "name"]
    for name in arguments:
        if name not in names:
            raise ConfigurationError(f"{what} has no argument {name!r}: there are {', '.join(names)}")
    return arguments


def request_of(
    type_name: str, job_id: str, payload: bytes, options: JobOptions, policy: JobPolicy, now_ms: int
) -> JobRequest:
    """The checked request. Raises `ConfigurationError` naming the option."""
    due_ms = _due_ms(options, now_ms)
    expires_ms = 0
    if options.expires is not None:
        expires_ms = (due_ms or now_ms) + _positive("expires", options.expires)
    if options.attempts is not None:
        _between("attempts", options.attempts, 1, ATTEMPTS_MAX)
    for name in ("dedup_id", "key", "workflow_id", "webhook"):
        if getattr(options, name) is not None:
            check_text(name, getattr(options, name))
    if options.tenant != "":
        check_text("tenant", options.tenant)
    return JobRequest(
        id=job_id,
        type=check_text("type", type_name),
        payload=payload,
        created_ms=now_ms,
        key=options.key,
        tenant=options.tenant,
        workflow_id=options.workflow_id,
        priority=_priority(policy.priority if options.priority is None else options.priority),
        due_ms=due_ms,
        expires_ms=expires_ms,
        attempts=options.attempts or 0,
        backoff=None if options.backoff is None else check_backoff(options.backoff),
        timeout_ms=0 if options.timeout is None else _positive("timeout", options.timeout),
        dedup_id=options.dedup_id,
        dedup_window_ms=_window_ms(options, policy),
        tags=_tags(options.tags),
        webhook=options.webhook,
    )


def _due_ms(options: JobOptions, now_ms: int) -> int:
    if options.delay is not None and options.run_at is not None:
        raise ConfigurationError("delay and run_at exclude each other: give the one or the other")
    if options.run_at is not None:
        at_ms = _moment_ms(options.run_at)
        return at_ms if at_ms > now_ms else 0
    delay_ms = 0 if options.delay is None else parse_duration_ms(options.delay, "delay")
    return now_ms + delay_ms if delay_ms else 0


def _moment_ms(run_at: object) -> int:
    """What is before 1973 are seconds: they would be a job that runs at once, instead of one that waits."""
    if isinstance(run_at, int) and not isinstance(run_at, bool) and run_at < RUN_AT_MIN:
        raise ConfigurationError(
            f"run_at={run_at} is in milliseconds since the epoch, and so before 1973: where these are seconds, multiply them by 1000"
        )
    return _between("run_at (milliseconds since the epoch)", run_at, RUN_AT_MIN, 10**15)


def _window_ms(options: JobOptions, policy: JobPolicy) -> int:
    if options.dedup_window is None:
        return 0 if options.dedup_id is None else policy.dedup_window_ms
    if options.dedup_id is None:
        raise ConfigurationError(
            f"dedup_window={options.dedup_window!r} without dedup_id means nothing: say which requests are the same"
        )
    return _positive("dedup_window", options.dedup_window)


def _tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Collection) or len(tags) > TAGS_MAX:
        raise ConfigurationError(f"tags={tags!r:.80} must be a sequence of at most {TAGS_MAX} texts")
    return tuple(check_text("tags", tag) for tag in tags)


def check_text(name: str, text: object) -> str:
    """The text, or a `ConfigurationError` naming the field."""
    if not isinstance(text, str) or not 0 < len(text) <= TEXT_MAX or "\0" in text:
        raise ConfigurationError(f"{name}={text!r:.80} must be a text of 1 to {TEXT_MAX} characters, without NUL")
    return check_written(name, text)


def check_written(name: str, text: object) -> str:
    """The same of a text of any length: an id that a caller has, say. It may be no id at all, but the topics must take it."""
    if not isinstance(text, str):
        hint = ", such as the `id` of a handle" if name == "job_id" else ""
        raise ConfigurationError(f"{name}={text!r:.80} must be a text{hint}")
    try:
        text.encode()
    except UnicodeEncodeError:  # such as the name of a file that is not UTF-8
        raise ConfigurationError(
            f"{name}={text!r:.80} has characters that UTF-8 does not have: escape or replace them"
        ) from None
    return text


def _between(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{name}={value!r:.80} must be a whole number from {low} to {high}")
    return value


def _priority(value: object) -> int:
    return _between("priority", value, -PRIORITY_MAX, PRIORITY_MAX)


def _positive(name: str, value: Duration) -> int:
    found_ms = parse_duration_ms(value, name)
    if found_ms < 1:
        raise ConfigurationError(f"{name}={value!r:.80} must be longer than zero")
    return found_ms


def check_job(policy: JobPolicy) -> JobPolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    _between("attempts", policy.attempts, 1, ATTEMPTS_MAX)
    check_backoff(policy.backoff)
    check_share("jitter", policy.jitter)
    _between("timeout_ms", policy.timeout_ms, 1, 365 * DAY_MS)
    _between("concurrency", policy.concurrency, 0, 100_000)
    _priority(policy.priority)
    _between("cost", policy.cost, 1, 1_000)
    _between("max_stalled_count", policy.max_stalled_count, 0, 1_000)
    _between("dedup_window_ms", policy.dedup_window_ms, 1, 365 * DAY_MS)
    check_terminal(policy.terminal)
    check_permissions(policy.permissions)
    if policy.secrets not in ("refuse", "allow"):
        raise ConfigurationError(f'secrets={policy.secrets!r:.80} must be "refuse" or "allow"')
    check_resources(policy.resources)
    if policy.executor not in ("auto", "process"):
        raise ConfigurationError(f'executor={policy.executor!r:.80} must be "auto" or "process"')
    if policy.batch is not None and policy.executor == "process":
        raise ConfigurationError('batch and executor="process" exclude each other: a process runs one job at a time')
    if policy.batch is not None:
        _check_batch(policy.batch, policy.concurrency)
    if policy.blobs not in ("delete", "keep"):
        raise ConfigurationError(f'blobs={policy.blobs!r:.80} must be "delete" or "keep"')
    for name in ("dead_letter", "release_on_failure"):
        check_kind(name, getattr(policy, name), bool, "True or False")
    _check_retention(policy.retention)
    return policy


def _check_retention(given: object) -> None:
    retention = check_kind("retention", given, RetentionPolicy, "RetentionPolicy(completed=100, failed=500)")
    _between("retention.completed", retention.completed, 0, 10_000_000)
    _between("retention.failed", retention.failed, 0, 10_000_000)
    _between("retention.age_ms", retention.age_ms, 0, 36_500 * DAY_MS)


def _check_batch(given: object, concurrency: int) -> None:
    batch = check_kind("batch", given, BatchPolicy, "Batch(size=10)")
    _between("batch.size", batch.size, 1, 10_000)
    _between("batch.wait_ms", batch.wait_ms, 0, 60_000)
    if batch.whole:
        raise ConfigurationError(
            "batch with whole=True is for subscriptions: each job of a batch has an ending of its own"
        )
    if 0 < concurrency < batch.size:
        raise ConfigurationError(
            f"concurrency={concurrency} is less than batch.size={batch.size}, so no batch would ever be full: raise it or leave it out"
        )


def check_queue(policy: QueuePolicy) -> QueuePolicy:
    """The policy, or a `ConfigurationError` naming the setting."""
    if len(policy.weights) != 3:
        raise ConfigurationError(f"weights={policy.weights!r} must be three numbers: of the lanes high, normal and low")
    for weight in policy.weights:
        _between("weights", weight, 1, 1_000)
    if list(policy.weights) != sorted(policy.weights, reverse=True):
        raise ConfigurationError(f"weights={policy.weights!r} must not grow from high to normal to low")
    for each in fields(policy):
        if each.name != "weights":
            low = 1 if each.name in ("oldest_every", "quantum", "ticks", "due") else 0
            _between(each.name, getattr(policy, each.name), low, 1_000 * DAY_MS)
    return policy


def check_schedule(schedule: Schedule) -> Schedule:
    """The schedule, or a `ConfigurationError` naming the field."""
    check_text("name", schedule.name)
    Cron(schedule.cron, schedule.zone)
    request = schedule.request
    if request.dedup_id is not None or request.due_ms or request.expires_ms:
        raise ConfigurationError(
            f"schedule {schedule.name!r} may not have dedup_id, delay, run_at or expires: each of its ticks is one job, at its time"
        )
    return schedule
