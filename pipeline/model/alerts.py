"""What is told of records that are given up: one diagnostics record each, and one summary for a flood of them. Values only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.model.headers import ErrorInfo
from pipeline.model.history import Attempt, History

INPUT_CHARS = 16_384
"""Longest JSON of an input that an alert carries whole."""


@dataclass(frozen=True, slots=True)
class DeadLetterAlert:
    """A record's final failure. `topic`, `partition`, `offset`: where its dead letter is; `origin`: where it was published.

    `input`: the decoded value with tagged fields masked; None where it has no contract or can't be read. Times are
    milliseconds since the epoch, 0 where not known. `attempts`: the most that the subscription allows.
    """

    group: str
    topic: str
    partition: int
    offset: int
    origin: tuple[str, int, int]
    key: str
    event_id: str
    handler: str
    record: str
    input: Any
    attempt: int
    attempts: int
    error: ErrorInfo
    history: History
    started_ms: int
    failed_ms: int
    log: tuple[str, ...] = ()
    traceparent: str = ""

    @property
    def kind(self) -> str:
        return "dead_letter"

    @property
    def alert_id(self) -> str:
        """The dead letter's position: the same whenever this alert is sent again."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def look(self) -> str:
        """The command that shows it."""
        return f"pipeline dlq show {self.partition}:{self.offset} --topic {self.topic}"

    def as_json(self) -> dict[str, Any]:
        """For the webhook; every value is what JSON can hold."""
        return {
            "v": 1,
            "kind": self.kind,
            "id": self.alert_id,
            "group": self.group,
            "handler": self.handler,
            "dead_letter": {"topic": self.topic, "partition": self.partition, "offset": self.offset},
            "origin": dict(zip(("topic", "partition", "offset"), self.origin, strict=True)),
            "key": self.key,
            "event_id": self.event_id,
            "type": self.record,
            "attempt": self.attempt,
            "attempts": self.attempts,
            "error": {
                "class": self.error.error_class,
                "type": self.error.error_type,
                "message": self.error.message,
                "stack": self.error.stack,
            },
            "started_ms": self.started_ms or None,
            "failed_ms": self.failed_ms or None,
            "history": [_attempt(attempt) for attempt in self.history.attempts],
            "history_dropped": self.history.dropped,
            "log": list(self.log),
            "input": _bounded(self.input),
            "traceparent": self.traceparent or None,
            "look": self.look,
        }


@dataclass(frozen=True, slots=True)
class FloodAlert:
    """So many dead letters of a group were not told of one by one, between two times."""

    group: str
    topic: str
    count: int
    since_ms: int
    until_ms: int
    by_class: Mapping[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "flood"

    @property
    def alert_id(self) -> str:
        return f"{self.topic}/{self.since_ms}-{self.until_ms}"

    @property
    def look(self) -> str:
        return f"pipeline dlq stats --topic {self.topic}"

    def as_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "kind": self.kind,
            "id": self.alert_id,
            "group": self.group,
            "topic": self.topic,
            "count": self.count,
            "since_ms": self.since_ms,
            "until_ms": self.until_ms,
            "by_class": dict(self.by_class),
            "look": self.look,
        }


Alert = DeadLetterAlert | FloodAlert


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "started_ms": attempt.started_ms or None,
        "failed_ms": attempt.failed_ms or None,
        "class": attempt.error_class,
        "type": attempt.error_type,
        "message": attempt.message,
    }


def _bounded(value: Any) -> Any:
    """As JSON holds it; a value that is too long as the beginning of its text."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return json.loads(text) if len(text) <= INPUT_CHARS else f"{text[:INPUT_CHARS]} ... ({len(text)} characters)"
