"""The plan: compares the topics that exist with those a set of subscriptions needs. Pure; `apply` is in the module next door.

What can be put right without danger becomes an action; what can't is refused and becomes a finding that says what to do.
Making a plan again after it was applied gives no actions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.model.cluster import TopicSpec
from pipeline.model.policies import Subscription
from pipeline.model.topics import AUDIT_TOPIC, CLOCK_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC, TASKS_TOPIC, check_topic
from pipeline.topology.actions import APPLY, Action, AddPartitions, CreateTopic, Finding, Plan, SetConfig
from pipeline.topology.naming import Layout, RetiredTier, layouts, retired_of
from pipeline.topology.rules import (
    DECOMPRESSED,
    Beside,
    Defaults,
    LaneKind,
    Level,
    Rule,
    audit_rules,
    clock_rules,
    control_rules,
    inbox_rules,
    lane_rules,
    minimum_retention_ms,
    results_rules,
    schema_rules,
    source_rules,
    tasks_rules,
)

_CONTROL_WHY = "switches of operators travel on it"
RESULTS_PARTITIONS = 6


@dataclass(frozen=True, slots=True)
class _Lane:
    topic: str
    kind: LaneKind
    delay_ms: int
    declared: bool = True


def _lanes(entry: Layout, retired: Sequence[RetiredTier]) -> Iterator[_Lane]:
    for topic, delay_ms in zip(entry.topics.tiers, entry.topics.tier_delays_ms, strict=True):
        yield _Lane(topic, "tier", delay_ms)
    for tier in retired:
        yield _Lane(tier.topic, "tier", tier.delay_ms, declared=False)
    yield _Lane(entry.topics.replay, "replay", 0)
    yield _Lane(entry.topics.dead_letters, "dead letters", 0)
    if entry.topics.state is not None:
        yield _Lane(entry.topics.state, "state", 0)


class _Planner:
    """Collects actions and findings. `known` is the cluster as it will be once the actions so far are taken."""

    def __init__(self, existing: Mapping[str, TopicSpec], defaults: Defaults) -> None:
        self.known = dict(existing)
        self.defaults = defaults
        self.actions: dict[tuple[str, str], Action] = {}
        self.findings: dict[tuple[str, str], Finding] = {}

    def plan(self) -> Plan:
        return Plan(tuple(self.actions.values()), tuple(self.findings.values()))

    def find(self, level: Level, topic: str, setting: str, problem: str, remedy: str) -> None:
        self.findings.setdefault((topic, setting), Finding(level, topic, setting, problem, remedy))

    def create(self, name: str, partitions: int, replication: int, rules: Sequence[Rule], why: str) -> None:
        spec = TopicSpec(name, partitions, replication, {rule.setting: rule.value for rule in rules})
        self.actions[name, ""] = CreateTopic(spec, why)
        self.known[name] = spec

    def settle(self, name: str, rules: Sequence[Rule]) -> None:
        """Bring the settings of a topic that exists (or is about to) in line."""
        for rule in rules:
            topic = self.known[name]
            actual = topic.configs.get(rule.setting)
            if rule.holds(actual):
                continue
            self.known[name] = replace(topic, configs={**topic.configs, rule.setting: rule.value})
            created = self.actions.get((name, ""))
            if isinstance(created, CreateTopic):
                self.actions[name, ""] = replace(created, spec=self.known[name])
            else:
                before = self.actions.get((name, rule.setting))
                was = before.was if isinstance(before, SetConfig) else actual or "not set"
                self.actions[name, rule.setting] = SetConfig(name, rule.setting, rule.value, was, rule.why, rule.level)

    def widen(self, name: str, total: int, why: str) -> None:
        """More partitions for a lane."""
        created = self.actions.get((name, ""))
        was = self.known[name].partitions
        self.known[name] = replace(self.known[name], partitions=total)
        if isinstance(created, CreateTopic):
            self.actions[name, ""] = replace(created, spec=self.known[name])
        else:
            before = self.actions.get((name, "partitions"))
            self.actions[name, "partitions"] = AddPartitions(
                name, total, before.was if isinstance(before, AddPartitions) else was, why
            )

    def source(self, name: str, what: str = "source topic", rules: Sequence[Rule] = ()) -> TopicSpec | None:
        if name in self.known:
            return self.known[name]
        if not self.defaults.create_sources:
            self.find(
                "error",
                name,
                "topic",
                f"the {what} does not exist",
                f"create it, or {APPLY} with --partitions",
            )
            return None
        self.create(
            name,
            self.defaults.partitions,
            self.defaults.replication_factor,
            rules or source_rules(),
            f"the {what} is missing",
        )
        return self.known[name]

    def lane(self, lane: _Lane, source: TopicSpec, group: str) -> None:
        rules = lane_rules(lane.kind, lane.delay_ms, source, self.defaults)
        if lane.topic not in self.known:
            self.create(
                lane.topic,
                source.partitions,
                source.replication_factor,
                rules,
                f"{lane.kind} of group {group}",
            )
            return
        self._partitions(lane, source)
        self.settle(lane.topic, rules)
        self._durability(lane.topic, source)

    def _partitions(self, lane: _Lane, source: TopicSpec) -> None:
        have = self.known[lane.topic].partitions
        if have < source.partitions:
            self.widen(
                lane.topic,
                source.partitions,
                f"{source.name} has {source.partitions}: a record keeps its partition number",
            )
        elif have > source.partitions and lane.kind != "dead letters":
            self.find(
                "error", lane.topic, "partitions",
                f"it has {have} partitions and {source.name} has {source.partitions}, and Kafka can't take partitions away",
                f"stop the group, drain or copy the lane, delete it and {APPLY}",
            )  # fmt: skip

    def _durability(self, name: str, source: TopicSpec) -> None:
        have, want = self.known[name].replication_factor, source.replication_factor
        if 0 < have < want:
            self.find(
                "warning", name, "replication.factor",
                f"it has {have} replicas and {source.name} has {want}, so it is lost sooner than its source",
                "raise it with kafka-reassign-partitions",
            )  # fmt: skip
        in_sync, least = (int(self.known[t].configs.get("min.insync.replicas", "1")) for t in (name, source.name))
        if in_sync < least <= have:
            why = f"a hand-off would count as safe with fewer copies than {source.name} asks for"
            self.settle(name, (Rule("min.insync.replicas", str(least), why, "at_least", "warning"),))


def _drains(planner: _Planner, group: str, retired: Sequence[RetiredTier], unsettled: Mapping[str, int]) -> None:
    for tier in retired:
        waiting = unsettled.get(tier.topic)
        problem = f"group {group} declares this tier no longer"
        if waiting == 0:
            remedy = "it is empty: delete it once no older worker runs"
        else:
            remedy = (
                f"keep it while workers drain {'what waits in it' if waiting is None else f'its {waiting} records'}"
            )
        planner.find("warning", tier.topic, "tiers", problem, remedy)


def plan(
    subscriptions: Sequence[Subscription],
    existing: Mapping[str, TopicSpec],
    defaults: Defaults | None = None,
    *,
    prefix: str = "",
    unsettled: Mapping[str, int] | None = None,
    beside: Beside | None = None,
) -> Plan:
    """What has to be done to `existing` (topics with their values in force) so that the subscriptions can run, so that
    the topics `beside` them are there, and so that records can be replayed.

    `unsettled` (topic -> records beyond the committed offset) makes the findings about old tiers exact.
    Raises `ConfigurationError` for declarations that can't work together or names that Kafka refuses.
    """
    planner = _plan(subscriptions, existing, defaults or Defaults(), prefix, unsettled or {}, beside or Beside())
    _records_of_actions(planner, prefix, {entry.topics.dead_letters for entry in layouts(subscriptions, prefix)})
    return planner.plan()


def _plan(
    subscriptions: Sequence[Subscription],
    existing: Mapping[str, TopicSpec],
    defaults: Defaults,
    prefix: str,
    unsettled: Mapping[str, int],
    beside: Beside,
) -> _Planner:
    planner = _Planner(existing, defaults)
    known_to_broker = any(DECOMPRESSED in spec.configs for spec in existing.values())
    for entry in layouts(subscriptions, prefix):
        if entry.topics.state is None:
            source = planner.source(entry.topics.source)
        else:
            source = planner.source(entry.topics.source, "inbox of a queue", (*source_rules(), *inbox_rules()))
        if source is None:
            continue
        if entry.topics.state is not None:
            planner.settle(source.name, inbox_rules())
        retired = retired_of(entry, existing)
        for lane in _lanes(entry, retired):
            planner.lane(lane, source, entry.group)
        _drains(planner, entry.group, retired, unsettled)
        if DECOMPRESSED not in source.configs and known_to_broker:
            planner.find(
                "warning",
                source.name,
                DECOMPRESSED,
                "one small batch may unpack to any size",
                f"set {DECOMPRESSED}",
            )
    for name in beside.plain:
        planner.source(check_topic(name), "topic to publish to")
    if beside.schemas:
        _single(planner, beside.schemas, schema_rules(), "ids of schemas are kept on it", "schemas have one order")
    _single(planner, prefix + CONTROL_TOPIC, control_rules(), _CONTROL_WHY, "switches have one order")
    return planner


def _records_of_actions(planner: _Planner, prefix: str, dead_letters: Collection[str]) -> None:
    """Topics that replays and dead letters need, and the clock: a worker starts without them. Results outlive the dead letters as they are
    kept in fact: somebody may have raised that by hand, or for another application."""
    audit, tasks = "who replayed or purged what is written on it first", "dead letters become tasks for people on it"
    _single(planner, prefix + AUDIT_TOPIC, audit_rules(), audit, "entries have one order")
    _single(planner, prefix + TASKS_TOPIC, tasks_rules(), tasks, "tasks have one order")
    clock = "workers learn the cluster's time on it, so that retries keep to one clock"
    _single(planner, prefix + CLOCK_TOPIC, clock_rules(), clock, "partition 0 is there")
    name = prefix + RESULTS_TOPIC
    kept = [planner.known[topic].configs.get("retention.ms", "") for topic in dead_letters if topic in planner.known]
    letters_ms = {planner.defaults.dead_letter_retention_ms, *(int(ms) for ms in kept if ms.lstrip("-").isdigit())}
    rules = results_rules(letters_ms)
    if name in planner.known:
        planner.settle(name, rules)
    else:
        why = "what became of each replayed record is written on it"
        planner.create(name, RESULTS_PARTITIONS, planner.defaults.replication_factor, rules, why)


def _single(planner: _Planner, name: str, rules: Sequence[Rule], why: str, order: str) -> None:
    """A topic of our own with one partition."""
    if name not in planner.known:
        planner.create(name, 1, planner.defaults.replication_factor, rules, why)
        return
    planner.settle(name, rules)
    if planner.known[name].partitions != 1:
        planner.find(
            "error",
            name,
            "partitions",
            f"it must have exactly one partition, so that {order}",
            f"delete it and {APPLY}",
        )


def check(
    subscriptions: Sequence[Subscription], existing: Mapping[str, TopicSpec], *, prefix: str = ""
) -> list[Finding]:
    """What a worker looks at before it starts: errors would lose data or stop the work, warnings are worth a log line.

    The same rules as `plan`, except that retention is an error only when it is not longer than the delay and 7 days:
    a larger default of ours does not stop a worker.
    """
    wanted = _plan(subscriptions, existing, Defaults(create_sources=False), prefix, {}, Beside()).plan()
    strict = _retention_floors(subscriptions, existing, prefix)
    return [*wanted.findings, *(_finding(action, strict) for action in wanted.actions)]


def _retention_floors(subscriptions: Sequence[Subscription], existing: Collection[str], prefix: str) -> dict[str, int]:
    floors: dict[str, int] = {}
    for entry in layouts(subscriptions, prefix):
        if entry.topics.state is not None:
            floors[entry.topics.source] = minimum_retention_ms("replay", 0)
        for lane in _lanes(entry, retired_of(entry, existing)):
            floors[lane.topic] = minimum_retention_ms(lane.kind, lane.delay_ms)
    return floors


def _finding(action: Action, floors: Mapping[str, int]) -> Finding:
    if isinstance(action, CreateTopic):
        return Finding("error", action.topic, "topic", f"it does not exist ({action.why})", APPLY)
    if isinstance(action, AddPartitions):
        return Finding("error", action.topic, "partitions", f"it has {action.was} partitions but {action.why}", APPLY)
    level = action.level
    if action.setting == "retention.ms" and action.was.isdigit() and int(action.was) > floors.get(action.topic, 0):
        level = "warning"
    problem = f"{action.setting}={action.was} is wrong: {action.why}"
    return Finding(level, action.topic, action.setting, problem, f"set it to {action.value}, or {APPLY}")
