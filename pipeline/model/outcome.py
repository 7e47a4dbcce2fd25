"""What became of one execution, as data; and the two exceptions by which a handler steers its record.

A handler returns None (done), `Emit`, `Warn`, or a sequence of `Emit`; it raises `Retry` or `Reject` to steer;
any other exception is classified by the subscription's `RetryPolicy`. The worker catches once and goes on with data.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.model.cluster import Headers
from pipeline.model.durations import parse_duration_ms


class Retry(Exception):
    """Raise in a handler: run this record again after `after` ("20s", or seconds); None = by the retry policy."""

    def __init__(self, message: str = "", *, after: str | float | None = None) -> None:
        super().__init__(message or "the handler asked for a retry")
        self.after_ms = None if after is None else parse_duration_ms(after, "Retry(after)")


class Reject(Exception):
    """Raise in a handler: this record can never succeed; it goes to the dead letters now."""

    def __init__(self, message: str = "the handler rejected the record") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Emit:
    """A record to publish: settled together with the input. `value` is encoded as the target topic's codec says."""

    topic: str
    key: str | bytes | None
    value: object
    headers: Headers | None = None


@dataclass(frozen=True, slots=True)
class Warn:
    """Done, but with a warning worth counting and logging."""

    reason: str


class FailureKind(enum.Enum):
    """Why an execution did not end well. The first two are retried while attempts last."""

    RETRYABLE = "retryable"
    TIMED_OUT = "timed_out"
    TERMINAL = "terminal"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True, slots=True)
class Failure:
    """An execution that failed: what the retry decision and the dead-letter headers need. `stack` is bounded by the caller.

    `started_ms`: when the execution began (0: not known); `log`: the last lines it logged. `scrubbed`: no text of it quotes
    a tagged field of its record any more.
    """

    kind: FailureKind
    error_class: str
    error_type: str
    message: str
    stack: str = ""
    after_ms: int | None = None
    started_ms: int = 0
    log: str = ""
    scrubbed: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The record is processed; `warning` is set for done-with-warning."""

    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The worker let go of the record (revoked, stopping): nothing is settled and it runs again elsewhere."""


Outcome = Done | Failure | Cancelled

ALLOWED_RETURNS = "None, Emit(...), a list of Emit, Warn(...)"


def outcome_of(returned: object) -> tuple[Done | Failure, Sequence[Emit]]:
    """The outcome a handler's return value stands for, and what it emits; an unexpected value is terminal and names the allowed ones."""
    if returned is None:
        return Done(), ()
    if isinstance(returned, Emit):
        return Done(), (returned,)
    if isinstance(returned, Warn):
        return Done(warning=returned.reason), ()
    if isinstance(returned, (list, tuple)) and all(isinstance(item, Emit) for item in returned):
        return Done(), returned
    text = f"the handler returned {type(returned).__name__}; it may return {ALLOWED_RETURNS}"
    return Failure(FailureKind.TERMINAL, "UnexpectedReturn", type(returned).__name__, text), ()
