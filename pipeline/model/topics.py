"""Topic names: a source topic's lanes for one group, all under one prefix so that one ACL covers them.

    T.G.retry.10s ...   retry tiers, one constant delay each
    T.G.replay          the replay lane
    T.G.dlq             dead letters (the name can be set per subscription)
    T.G.state           the store of a queue of jobs, compacted; T is the queue's inbox then

Kafka allows [a-zA-Z0-9._-] and 249 characters. Letters outside that in a group name are escaped as `_xx` (hex of the UTF-8 byte),
so two groups never share the lanes of one source topic. (Of two source topics they could, as `a` + `b.c` and `a.b` + `c`:
the topology check refuses that.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.model.durations import format_duration
from pipeline.model.errors import ConfigurationError

MAX_TOPIC_LENGTH = 249
CONTROL_TOPIC = "_pipeline.control"
SCHEMAS_TOPIC = "_pipeline.schemas"
AUDIT_TOPIC = "_pipeline.audit"
"""Who did what and why: an entry is acknowledged before the first effect of an action."""
RESULTS_TOPIC = "_pipeline.replay.results"
"""What became of every record that an action was about."""
TASKS_TOPIC = "_pipeline.tasks"
"""Dead letters that were turned into tasks for people."""
CLOCK_TOPIC = "_pipeline.clock"
"""Workers write empty records on it to learn the cluster's time from what the broker stamps on them."""

_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


def check_topic(name: str, setting: str = "topic") -> str:
    """The name itself, or a `ConfigurationError` that says what is wrong with it."""
    if not _LEGAL.fullmatch(name) or name in (".", ".."):
        raise ConfigurationError(
            f"{setting}={name!r} is not a legal topic name: use letters, digits, '.', '_' and '-' only"
        )
    if len(name) > MAX_TOPIC_LENGTH:
        raise ConfigurationError(
            f"{setting}={name!r} has {len(name)} characters; Kafka allows {MAX_TOPIC_LENGTH}: shorten the topic or group name"
        )
    return name


def escape(group: str) -> str:
    """The group as part of a topic name: every byte outside [a-zA-Z0-9.-] becomes `_xx`."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in ".-") else "".join(f"_{b:02x}" for b in c.encode()) for c in group
    )


@dataclass(frozen=True, slots=True)
class LaneTopics:
    """All topics of one subscription. `tiers` are in order of delay; `lanes` = tiers then replay: what is fetched beside the source.

    `state` is the store of a queue of jobs.
    """

    source: str
    tiers: tuple[str, ...]
    tier_delays_ms: tuple[int, ...]
    replay: str
    dead_letters: str
    state: str | None = None

    @property
    def lanes(self) -> tuple[str, ...]:
        return (*self.tiers, self.replay)

    @property
    def private(self) -> tuple[str, ...]:
        """What only this group may write to: its lanes, and its store."""
        return self.lanes if self.state is None else (*self.lanes, self.state)


def lane_topics(
    source: str, group: str, tier_delays_ms: tuple[int, ...], dead_letters: str | None = None, store: bool = False
) -> LaneTopics:
    """The lanes of `group` on `source`, names checked. Environment prefixes are already part of `source` and `group`."""
    base = f"{source}.{escape(group)}"
    return LaneTopics(
        source=check_topic(source),
        tiers=tuple(check_topic(f"{base}.retry.{format_duration(delay)}") for delay in tier_delays_ms),
        tier_delays_ms=tier_delays_ms,
        replay=check_topic(f"{base}.replay"),
        dead_letters=check_topic(dead_letters or f"{base}.dlq", "dead_letter_topic"),
        state=check_topic(f"{base}.state") if store else None,
    )
