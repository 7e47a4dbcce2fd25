"""`pipeline topics`: plan, apply and list the topics of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import BrokerOption, JsonOption, load_app, open_admin, open_cluster, prefix, real, settings
from pipeline.cli.output import Column, clean, emit_json, line, note, table
from pipeline.model.durations import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.model.cluster import ClusterAdmin, TopicSpec
    from pipeline.model.policies import Subscription
    from pipeline.topology import Action, Beside, Defaults, Finding, Plan

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Plan, make and list the topics of an application.",
)

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_PARTS_MAX = 2

AppArgument = Annotated[
    str | None,
    typer.Argument(
        help="The application, for example mymodule:app. Without one: the topic of run events, and the pipeline's own.",
        metavar="MODULE:APP",
    ),
]
TopicsOption = Annotated[
    list[str] | None,
    typer.Option("--topic", help="Also this topic, for example one a handler emits to; repeatable.", metavar="NAME"),
]
PartitionsOption = Annotated[
    int, typer.Option("--partitions", min=1, max=10_000, help="Partitions of a source or --topic that has to be made.")
]
ReplicationOption = Annotated[
    int, typer.Option("--replication", min=-1, help="Replicas of new topics; -1 = the cluster's default.")
]
SourcesOption = Annotated[
    bool, typer.Option("--create-sources/--no-create-sources", help="Make source topics that are missing.")
]
RetentionOption = Annotated[
    str, typer.Option("--dead-letter-retention", help="How long dead letters are kept at least.")
]


def _wanted(target: str | None, topics: Sequence[str] | None) -> tuple[tuple[Subscription, ...], Beside]:
    """What the topics are for: an application's subscriptions, and what is published to beside them."""
    from pipeline.model.topics import SCHEMAS_TOPIC
    from pipeline.topology import Beside

    named = tuple(dict.fromkeys(real(name) for name in topics or ()))
    if target is not None:
        return load_app(target).subscriptions, Beside(named)
    chosen = settings()
    events = chosen.prefix + chosen.events_topic
    ours = not chosen.registry and not chosen.broker.startswith("memory://")
    return (), Beside(tuple(dict.fromkeys((events, *named))), chosen.prefix + SCHEMAS_TOPIC if ours else "")


def _defaults(partitions: int, replication: int, sources: bool, retention: str) -> Defaults:
    from pipeline.topology import Defaults

    kept_ms = parse_duration_ms(retention, "--dead-letter-retention")
    return Defaults(partitions, replication, sources, kept_ms)


def describe(action: Action) -> str:
    """An action in words."""
    from pipeline.topology import AddPartitions, CreateTopic

    if isinstance(action, CreateTopic):
        return f"create with {action.spec.partitions} partitions ({action.why})"
    if isinstance(action, AddPartitions):
        return f"{action.was} -> {action.total} partitions ({action.why})"
    return f"{action.setting}: {action.was} -> {action.value} ({action.why})"


def _action_json(action: Action) -> dict[str, Any]:
    from pipeline.topology import AddPartitions, CreateTopic

    if isinstance(action, CreateTopic):
        spec = action.spec
        return {
            "action": "create",
            "topic": spec.name,
            "partitions": spec.partitions,
            "replication_factor": spec.replication_factor,
            "configs": dict(spec.configs),
            "why": action.why,
        }
    if isinstance(action, AddPartitions):
        return {
            "action": "add_partitions",
            "topic": action.topic,
            "was": action.was,
            "partitions": action.total,
            "why": action.why,
        }
    return {
        "action": "set_config",
        "topic": action.topic,
        "setting": action.setting,
        "was": action.was,
        "value": action.value,
        "why": action.why,
    }


def _finding_json(finding: Finding) -> dict[str, str]:
    return {
        "level": finding.level,
        "topic": finding.topic,
        "setting": finding.setting,
        "problem": finding.problem,
        "remedy": finding.remedy,
    }


def _show(plan: Plan, verb: str) -> None:
    if plan.actions:
        line(f"{len(plan.actions)} {'action' if len(plan.actions) == 1 else 'actions'} {verb}:")
        table(["topic", "action"], [(action.topic, describe(action)) for action in plan.actions])
    _show_findings(plan.findings)


def _show_findings(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        note(f"{finding.level}: {clean(finding.sentence)}", "red" if finding.level == "error" else "yellow")


@app.command("plan")
def plan_command(
    target: AppArgument = None,
    topic: TopicsOption = None,
    partitions: PartitionsOption = 12,
    replication: ReplicationOption = -1,
    create_sources: SourcesOption = True,
    dead_letter_retention: RetentionOption = "30d",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `apply` would do; change nothing.

    Exit code 0: nothing to do. 1: there are actions, or errors that only you can put right.

    Example: pipeline topics plan mymodule:app
    """
    from pipeline.inspect.positions import unsettled_in_retired_tiers
    from pipeline.topology import plan_for

    subscriptions, beside = _wanted(target, topic)
    defaults = _defaults(partitions, replication, create_sources, dead_letter_retention)
    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        waiting = unsettled_in_retired_tiers(cluster, subscriptions, prefix())
        plan = plan_for(admin, subscriptions, defaults, prefix(), waiting, beside)
    if as_json:
        emit_json(
            {"actions": [_action_json(a) for a in plan.actions], "findings": [_finding_json(f) for f in plan.findings]}
        )
    else:
        _show(plan, "to take")
        if not plan.actions and not plan.errors:
            line("Every topic is as it should be.", "green")
    raise typer.Exit(1 if plan.actions or plan.errors else 0)


@app.command("apply")
def apply_command(
    target: AppArgument = None,
    topic: TopicsOption = None,
    partitions: PartitionsOption = 12,
    replication: ReplicationOption = -1,
    create_sources: SourcesOption = True,
    dead_letter_retention: RetentionOption = "30d",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the topics and settings that are missing. Nothing is deleted, and source topics that exist are not touched.

    Without MODULE:APP for those who only publish: the topic of run events and the pipeline's own topics.

    Exit code 0: workers can start. 1: errors are left that only you can put right.

    Example: pipeline topics apply mymodule:app --partitions 12
    """
    from pipeline.inspect.positions import unsettled_in_retired_tiers
    from pipeline.topology import apply

    subscriptions, beside = _wanted(target, topic)
    defaults = _defaults(partitions, replication, create_sources, dead_letter_retention)
    taken: list[Action] = []

    def done(action: Action) -> None:
        taken.append(action)
        if not as_json:
            line(f"{clean(action.topic)}: {clean(describe(action))}", "green")

    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        waiting = unsettled_in_retired_tiers(cluster, subscriptions, prefix())
        plan = apply(admin, subscriptions, defaults, prefix(), done, waiting, beside)
    if as_json:
        emit_json({"actions": [_action_json(a) for a in taken], "findings": [_finding_json(f) for f in plan.findings]})
    else:
        _show_findings(plan.findings)
        line(f"{len(taken)} actions taken." if taken else "Every topic was as it should be.")
    raise typer.Exit(1 if plan.errors else 0)


def _kinds(topics: Mapping[str, TopicSpec], groups: list[str]) -> dict[str, tuple[str, str]]:
    """Topic -> (kind, group) for what belongs to a group by name."""
    from pipeline.model.topics import AUDIT_TOPIC, CLOCK_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC, SCHEMAS_TOPIC, TASKS_TOPIC
    from pipeline.topology import discover

    own = {CONTROL_TOPIC: "control", SCHEMAS_TOPIC: "schemas", AUDIT_TOPIC: "audit", RESULTS_TOPIC: "replay results"}
    own |= {TASKS_TOPIC: "tasks", CLOCK_TOPIC: "clock"}
    found: dict[str, tuple[str, str]] = {prefix() + name: (kind, "") for name, kind in own.items()}
    for group in groups:
        for entry in discover(group, topics):
            found.setdefault(entry.topics.source, ("source", ""))
            found |= dict.fromkeys(entry.topics.tiers, ("tier", group))
            found |= {entry.topics.replay: ("replay", group), entry.topics.dead_letters: ("dead letters", group)}
    found.setdefault(prefix() + settings().events_topic, ("source", ""))
    return found


def _counts(admin: ClusterAdmin, topics: Sequence[TopicSpec]) -> dict[str, int]:
    """Records of each topic, without those that were deleted while we looked."""
    from pipeline.model.cluster import TopicPartition
    from pipeline.model.errors import PipelineError

    while True:
        places = [TopicPartition(spec.name, p) for spec in topics for p in range(spec.partitions)]
        try:
            ends, starts = admin.end_offsets(places), admin.beginning_offsets(places)
        except PipelineError:
            there = set(admin.topic_names())
            left = [spec for spec in topics if spec.name in there]
            if len(left) == len(topics):
                raise
            topics = left
        else:
            return {spec.name: sum(ends[p] - starts[p] for p in places if p.topic == spec.name) for spec in topics}


@app.command("list")
def list_command(
    everything: Annotated[bool, typer.Option("--all", help="Also topics that belong to no group known here.")] = False,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List topics with the part they play: source, tier, replay lane, dead letters.

    Lanes are recognised by the groups that have committed; --all shows every topic.

    Example: pipeline topics list
    """
    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        topics = admin.topics()
        kinds = _kinds(topics, admin.groups())
        shown = [spec for name, spec in sorted(topics.items()) if everything or name in kinds]
        counts = _counts(admin, shown)
    rows = []
    for spec in [spec for spec in shown if spec.name in counts]:
        kind, group = kinds.get(spec.name, ("other", ""))
        records = counts[spec.name]
        kept = spec.configs.get("retention.ms", "")
        rows.append((spec, kind, group, records, kept))
    if as_json:
        emit_json(
            [
                {
                    "topic": spec.name,
                    "kind": kind,
                    "group": group or None,
                    "partitions": spec.partitions,
                    "replication_factor": spec.replication_factor,
                    "records": records,
                    "retention_ms": int(kept) if kept else None,
                    "cleanup_policy": spec.configs.get("cleanup.policy"),
                }
                for spec, kind, group, records, kept in rows
            ]
        )
        return
    columns: list[Column | str] = [
        "topic",
        "kind",
        "group",
        Column("partitions", True),
        Column("replicas", True),
        Column("records", True),
        Column("kept", True),
    ]
    table(
        columns,
        [
            (s.name, kind, group, s.partitions, s.replication_factor, records, _kept(s, kept))
            for s, kind, group, records, kept in rows
        ],
        "no topics yet: `pipeline topics apply` makes them",
    )


def _kept(spec: TopicSpec, retention: str) -> str:
    if "delete" not in spec.configs.get("cleanup.policy", "delete"):
        return "newest per key"
    if not retention:
        return ""
    return "for ever" if retention == "-1" else in_words(int(retention))


def in_words(ms: int) -> str:
    """A duration in the two largest units that matter: 691_210_000 -> "8d 10s"."""
    parts: list[str] = []
    for unit, size in _UNITS_MS:
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count}{unit}")
        if len(parts) == _PARTS_MAX:
            break
    return " ".join(parts) or "0s"
