"""Which topics belong to which group: names of every subscription, tiers declared no longer, lanes found by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.model.durations import format_duration, parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.policies import Subscription
from pipeline.model.topics import LaneTopics, escape, lane_topics

_DELAY = re.compile(r"^[1-9]\d*(ms|s|m|h|d)$")


class RetiredTier(NamedTuple):
    """A tier of the group that exists but is declared no longer: read until it is empty."""

    topic: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One group and the topics it works with, by their real names."""

    group: str
    topics: LaneTopics

    def with_dead_letters(self, topic: str) -> Layout:
        """The same with dead letters under another name than the default."""
        return replace(self, topics=replace(self.topics, dead_letters=topic))

    def missing(self, existing_names: Collection[str]) -> tuple[str, ...]:
        """Its source and lanes that are not there."""
        return tuple(name for name in (self.topics.source, *self.topics.lanes) if name not in existing_names)

    def without_dead_letters(self) -> str:
        """What a tool says that was told no name and finds no topic of the default one."""
        return (
            f"the dead letters of group {self.group} were not looked at: topic {self.topics.dead_letters} does not exist; "
            "give the subscription's dead_letter_topic with --dead-letters"
        )


def layout(subscription: Subscription, prefix: str = "") -> Layout:
    """Names of one subscription, checked; `prefix` (of the environment) stands before topics and groups."""
    group = prefix + subscription.group
    dead_letters = None if subscription.dead_letter_topic is None else prefix + subscription.dead_letter_topic
    store = subscription.jobs is not None
    topics = lane_topics(prefix + subscription.topic, group, subscription.retry.tiers_ms, dead_letters, store)
    return Layout(group, topics)


def layouts(subscriptions: Sequence[Subscription], prefix: str = "") -> tuple[Layout, ...]:
    """All of them, or a `ConfigurationError`: two subscriptions with one group, or two that would share a lane."""
    found = tuple(layout(subscription, prefix) for subscription in subscriptions)
    groups: set[str] = set()
    owner: dict[str, str] = {}
    for entry in found:
        if entry.group in groups:
            raise ConfigurationError(f"group={entry.group!r} is declared by two subscriptions: give each its own group")
        groups.add(entry.group)
        for lane in entry.topics.private:
            if lane in owner:
                raise ConfigurationError(
                    f"groups {owner[lane]!r} and {entry.group!r} would share the lane {lane}: rename one of the groups"
                )
            owner[lane] = entry.group
    for entry in found:
        _check_no_lane_is_reused(entry, owner)
    return found


def _check_no_lane_is_reused(entry: Layout, owner: dict[str, str]) -> None:
    for setting, topic in (("topic", entry.topics.source), ("dead_letter_topic", entry.topics.dead_letters)):
        if topic in owner:
            raise ConfigurationError(
                f"{setting}={topic!r} of group {entry.group!r} is a lane of group {owner[topic]!r}: "
                "only that group may use it"
            )
    if entry.topics.dead_letters == entry.topics.source:
        raise ConfigurationError(
            f"dead_letter_topic={entry.topics.source!r} of group {entry.group!r} is its source topic: "
            "dead letters would come back for ever"
        )


def _retired(entry: Layout, existing_names: Collection[str]) -> Iterator[RetiredTier]:
    head = f"{entry.topics.source}.{escape(entry.group)}.retry."
    for name in existing_names:
        delay = name.removeprefix(head)
        if name.startswith(head) and _DELAY.match(delay) and name not in entry.topics.tiers:
            delay_ms = parse_duration_ms(delay)
            if format_duration(delay_ms) == delay:
                yield RetiredTier(name, delay_ms)


def retired_tiers(
    subscription: Subscription, existing_names: Collection[str], prefix: str = ""
) -> tuple[RetiredTier, ...]:
    """Tiers of this subscription that exist and are declared no longer, shortest delay first."""
    return retired_of(layout(subscription, prefix), existing_names)


def retired_of(entry: Layout, existing_names: Collection[str]) -> tuple[RetiredTier, ...]:
    """The same for a layout."""
    return tuple(sorted(_retired(entry, existing_names), key=lambda tier: tier.delay_ms))


def bases_of(topic: str, existing_names: Collection[str]) -> tuple[str, ...]:
    """Of every group that reads this topic or has it as a lane, by names alone: what its lanes' names begin with (`T.G`).

    Empty for dead letters, and for a topic that is neither. A lane is of the source with the longest name that fits.
    """
    names = set(existing_names)
    heads = {name.removesuffix(".replay") for name in names if name.endswith(".replay")}
    tail = topic.rpartition(".retry.")[2] if ".retry." in topic else topic.rpartition(".")[2]
    head = topic.removesuffix(f".retry.{tail}" if _DELAY.match(tail) else f".{tail}")
    if head in heads and _source_of(head, names):
        if tail == "dlq":
            return ()
        if tail in ("replay", "state") or _DELAY.match(tail):
            return (head,)
    return tuple(sorted(each for each in heads if _source_of(each, names) == topic))


def _source_of(head: str, names: Collection[str]) -> str:
    """The longest existing name that the beginning of a lane's name (`T.G`) begins with; "" where there is none."""
    while head:
        head = head.rpartition(".")[0]
        if head in names:
            return head
    return ""


def discover(group: str, existing_names: Collection[str]) -> tuple[Layout, ...]:
    """Lanes of a group (real name) found by topic names alone, for tools that have no application at hand.

    Needs the replay lane and the source topic to exist; all tiers that exist count as declared. A dead-letter topic with
    a name of its own can't be found so: the default name is given even where it does not exist.
    """
    names = set(existing_names)
    tail = f".{escape(group)}.replay"
    found = []
    for name in sorted(names):
        source = name.removesuffix(tail)
        if not name.endswith(tail) or source not in names:
            continue
        bare = Layout(group, lane_topics(source, group, ()))
        delays = tuple(tier.delay_ms for tier in retired_of(bare, names))
        store = tail.removesuffix("replay") + "state"
        found.append(Layout(group, lane_topics(source, group, delays, store=source + store in names)))
    return tuple(found)
