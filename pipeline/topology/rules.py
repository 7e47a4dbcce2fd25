"""What every topic's settings must be so that nothing is lost, each rule with its reason.

Lanes count time from when a record was written to them (LogAppendTime): the copy of an old record must not expire at once.
Sources of the settings' meaning: Kafka's topic configuration reference.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pipeline.model.cluster import TopicSpec

DAY_MS = 86_400_000
MARGIN_MS = 7 * DAY_MS
"""How much longer than its delay a tier keeps records: a group may be down for a week and lose nothing."""
LANE_OVERHEAD_BYTES = 16_384
"""Headers that a lane copy carries beyond its source record."""
KAFKA_MAX_MESSAGE_BYTES = 1_048_588
DECOMPRESSED_BYTES = 16_777_216
KAFKA_MAX_DECOMPRESSED_BYTES = 2_147_483_639
"""The default, and the most that a broker takes."""
SEGMENT_BYTES = 134_217_728
DECOMPRESSED = "max.decompressed.message.bytes"
"""Kafka 4.4 and patch releases of that time have it; brokers report it only where it is set on the topic itself."""
OPTIONAL = (DECOMPRESSED,)
"""Settings that a topic is made without when the broker does not know them."""

Level = Literal["error", "warning"]
LaneKind = Literal["tier", "replay", "dead letters", "state"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A setting, the value we give it, and when another value is as good.

    `kind`: "exact", "at_least" (a number; -1 = without limit), or "initial" (only when we make the topic).
    A setting that the broker does not report holds, unless `must_be_set`. `why` says what a wrong value does.
    """

    setting: str
    value: str
    why: str
    kind: Literal["exact", "at_least", "initial"] = "exact"
    level: Level = "error"
    must_be_set: bool = False

    def holds(self, actual: str | None) -> bool:
        if self.kind == "initial":
            return True
        if actual is None:
            return not self.must_be_set
        if self.kind == "exact":
            return actual == self.value
        return _number(actual) >= _number(self.value)


def _number(text: str) -> float:
    try:
        number = int(text)
    except ValueError:
        return -1.0
    return float("inf") if number == -1 else float(number)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a plan gives to topics that leave it open. Sizes in bytes, times in milliseconds.

    `create_sources`: make a source topic that is missing (with `partitions`); otherwise that is a finding.
    """

    partitions: int = 12
    replication_factor: int = -1
    create_sources: bool = True
    dead_letter_retention_ms: int = 30 * DAY_MS


@dataclass(frozen=True, slots=True)
class Beside:
    """Topics beside those of the subscriptions, by their real names.

    `plain`: topics that something is published to; one that is missing is made like a source topic. `schemas`: where
    the registry inside the cluster keeps its ids; empty: not ours to make.
    """

    plain: tuple[str, ...] = ()
    schemas: str = ""

    @property
    def names(self) -> frozenset[str]:
        return frozenset({*self.plain, self.schemas} - {""})


def source_rules() -> tuple[Rule, ...]:
    """What a source topic gets when we make it; settings of one that exists are its owner's."""
    return (
        Rule(
            DECOMPRESSED,
            str(DECOMPRESSED_BYTES),
            "one small batch could unpack to any size",
            "initial",
            "warning",
        ),
    )


def lane_rules(kind: LaneKind, delay_ms: int, source: TopicSpec, defaults: Defaults) -> tuple[Rule, ...]:
    """Rules for one lane of `source` (as it is, or as it will be made). `delay_ms` is 0 for lanes that are no tier."""
    message_bytes = int(source.configs.get("max.message.bytes", KAFKA_MAX_MESSAGE_BYTES)) + LANE_OVERHEAD_BYTES
    if kind == "state":
        return state_rules(2 * message_bytes)
    rules = [
        Rule("cleanup.policy", "delete", "compaction would remove all but the last record of a key"),
        _retention(kind, delay_ms, defaults),
        Rule("retention.bytes", "-1", "records would be deleted by size before they were handled"),
        Rule(
            "message.timestamp.type",
            "LogAppendTime",
            "retention would count from the original record, not from the hand-off",
        ),
        Rule(
            "max.message.bytes",
            str(message_bytes),
            f"a record as large as {source.name} allows would not fit with its headers",
            "at_least",
        ),
        Rule("segment.ms", str(DAY_MS), "", "initial"),
        Rule("segment.bytes", str(max(SEGMENT_BYTES, message_bytes)), "", "initial"),
    ]
    bound = source.configs.get(DECOMPRESSED)
    if bound is not None:
        value = str(min(int(bound) + LANE_OVERHEAD_BYTES, KAFKA_MAX_DECOMPRESSED_BYTES))
        rules.append(
            Rule(
                DECOMPRESSED,
                value,
                f"a record that {source.name} accepts could be refused here",
                "at_least",
                "warning",
                must_be_set=True,
            )
        )
    return tuple(rules)


STATE_SEGMENT_BYTES = 33_554_432
STRANGERS_MS = 3_600_000
"""For so long a store keeps what was true before a stranger (a worker that was taken for dead) wrote over it."""


def inbox_rules() -> tuple[Rule, ...]:
    """What a queue asks of its inbox, beside `source_rules`."""
    return (
        Rule("cleanup.policy", "delete", "compaction would remove all but the last job of a key"),
        Rule(
            "message.timestamp.type",
            "LogAppendTime",
            "dedup windows count from when a job was written, and the clocks of callers differ",
        ),
        Rule(
            "retention.ms",
            str(_whole_days_beyond(MARGIN_MS)),
            "jobs would be deleted before a queue comes back that was down for a week",
            "at_least",
        ),
        Rule("retention.bytes", "-1", "jobs would be deleted by size before they were admitted"),
    )


def state_rules(message_bytes: int) -> tuple[Rule, ...]:
    """The store of a queue keeps the newest entry of each job for ever. An entry holds the request and its result."""
    return (
        Rule("cleanup.policy", "compact", "jobs that wait would be forgotten after a while"),
        Rule(
            "min.compaction.lag.ms",
            str(STRANGERS_MS),
            "what a worker that was taken for dead writes late could replace what is true before anybody sees it",
            "at_least",
        ),
        Rule("max.message.bytes", str(message_bytes), "a job and its result together would not fit", "at_least"),
        Rule("segment.ms", str(DAY_MS), "", "initial"),
        Rule("segment.bytes", str(max(STATE_SEGMENT_BYTES, message_bytes)), "", "initial"),
    )


def _retention(kind: LaneKind, delay_ms: int, defaults: Defaults) -> Rule:
    if kind == "dead letters":
        return Rule(
            "retention.ms",
            str(defaults.dead_letter_retention_ms),
            "dead letters would expire sooner than the application says",
            "at_least",
        )
    wanted = str(_whole_days_beyond(minimum_retention_ms(kind, delay_ms)))
    if kind == "replay":
        return Rule(
            "retention.ms",
            wanted,
            "replayed records would expire before a group comes back that was down for a week",
            "at_least",
        )
    return Rule(
        "retention.ms",
        wanted,
        f"waiting records would be deleted: keep them for the delay ({delay_ms} ms) and 7 days",
        "at_least",
    )


def _whole_days_beyond(floor_ms: int) -> int:
    """More than the floor, in whole days: what people set and read."""
    return (floor_ms // DAY_MS + 1) * DAY_MS


def minimum_retention_ms(kind: LaneKind, delay_ms: int) -> int:
    """A worker refuses to start unless the lane keeps records longer than this."""
    return 1 if kind in ("dead letters", "state") else delay_ms + MARGIN_MS


def schema_rules() -> tuple[Rule, ...]:
    """The topic of the registry that lives in the cluster keeps every schema for ever."""
    return (Rule("cleanup.policy", "compact", "schemas would be forgotten after a while"),)


def audit_rules() -> tuple[Rule, ...]:
    """What was done by whom is kept for a year."""
    return _history_rules(365 * DAY_MS, "who did what would be forgotten")


_LONG_MAX = 2**63 - 1


def results_rules(letters_ms: Collection[int]) -> tuple[Rule, ...]:
    """Results are kept for a month, and longer than the dead letters that they tell of. `letters_ms`: retentions of those, -1 = for ever.

    A segment is deleted when its newest record is old enough, which is a day later than its oldest: so results get two days more.
    """
    kept_ms = max(30 * DAY_MS, *(ms + 2 * DAY_MS for ms in letters_ms))
    if -1 in letters_ms or kept_ms > _LONG_MAX:  # brokers refuse what a long does not hold
        kept_ms = -1
    return _history_rules(
        kept_ms,
        "a resumed replay would not know what it has written, and dead letters that were redriven would be open again",
    )


CLOCK_RETENTION_MS = 3_600_000


def tasks_rules() -> tuple[Rule, ...]:
    """Tasks for people are kept until someone deletes them."""
    return (Rule("cleanup.policy", "delete", _COMPACTED), Rule("retention.ms", "-1", "open tasks would expire"))


def clock_rules() -> tuple[Rule, ...]:
    """Nobody reads its records: what counts is the time that the broker puts on them."""
    return (
        Rule("message.timestamp.type", "LogAppendTime", "the producer's time would come back, not the cluster's"),
        Rule("cleanup.policy", "delete", "records without a key are refused by compaction"),
        Rule("retention.ms", str(CLOCK_RETENTION_MS), "", "initial"),
    )


_COMPACTED = "compaction would remove all but the last entry of a key"


def _history_rules(retention_ms: int, why: str) -> tuple[Rule, ...]:
    return (
        Rule("cleanup.policy", "delete", _COMPACTED),
        Rule("retention.ms", str(retention_ms), why, "at_least"),
        Rule("retention.bytes", "-1", why),
    )


def control_rules() -> tuple[Rule, ...]:
    """The control topic keeps the newest state of every switch for ever."""
    return (Rule("cleanup.policy", "compact", "switches of operators would be forgotten after a while"),)
