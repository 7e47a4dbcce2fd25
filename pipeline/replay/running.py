"""From a plan to its execution: does it still fit, may it run, is it on record; then this process takes part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.inspect.appending import require_topic
from pipeline.inspect.control import read_switches
from pipeline.inspect.positions import committed
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, ClusterAdmin, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import AUDIT_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC
from pipeline.replay.asking import check_target
from pipeline.replay.audit import AuditEntry, read_audit, write_audit
from pipeline.replay.copying import Copier, copier_of
from pipeline.replay.executing import Executor
from pipeline.replay.files import FromFile, ToFile, check_target_file, count_records
from pipeline.replay.forking import EventCodec, Forker
from pipeline.replay.joining import ResultsPlace, refuse_second, refuse_sharing
from pipeline.replay.options import RunOptions, Tally
from pipeline.replay.plan import PlanError, ReplayPlan, as_json, from_json
from pipeline.replay.progress import done_of
from pipeline.replay.recording import action_of
from pipeline.replay.results import read_results

GROUP = "pipeline.replay."


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A cluster, and the prefix that stands before our own topics and groups."""

    cluster: Cluster
    prefix: str = ""

    @property
    def audit(self) -> str:
        return self.prefix + AUDIT_TOPIC

    @property
    def results(self) -> str:
        return self.prefix + RESULTS_TOPIC

    @property
    def control(self) -> str:
        return self.prefix + CONTROL_TOPIC

    def group(self, plan_id: str) -> str:
        return f"{self.prefix}{GROUP}{plan_id}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Who does it, why, and by which command."""

    who: str
    why: str
    command: str = ""


def check_plan(surroundings: Surroundings, plan: ReplayPlan) -> dict[str, int]:
    """Does the cluster still look as when the plan was made? Partitions of the target topics.

    Raises `PlanError` for a source that changed, `ConfigurationError` for a target that is missing or does not fit.
    """
    admin = surroundings.cluster.admin()
    try:
        if plan.source.kind == "file":
            _check_file(plan)
        else:
            _check_source(surroundings, admin, plan)
        return check_target(admin, plan.target, plan.source)
    finally:
        admin.close()


def _check_file(plan: ReplayPlan) -> None:
    count, planned = count_records(Path(plan.source.topic)), plan.source.spans[0].end
    if count < planned:
        raise PlanError(
            f"{plan.source.topic} holds {count} records and plan {plan.plan_id} was made of {planned}: make a new plan"
        )


def _check_source(surroundings: Surroundings, admin: ClusterAdmin, plan: ReplayPlan) -> None:
    source = plan.source
    spec = admin.topics([source.topic]).get(source.topic)
    if spec is None:
        raise PlanError(f"topic {source.topic} of plan {plan.plan_id} does not exist any more: make a new plan")
    if spec.partitions != source.partitions:
        raise PlanError(
            f"{source.topic} has {spec.partitions} partitions now and had {source.partitions} when plan {plan.plan_id} was "
            "made: make a new plan"
        )
    places = [TopicPartition(source.topic, p) for p in source.spans]
    beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    positions = committed(surroundings.cluster, surroundings.group(plan.plan_id), places)
    for place in places:
        span = source.spans[place.partition]
        done = done_of(positions.get(place), span.start)
        if ends[place] < span.end or beginnings[place] < span.beginning:
            raise PlanError(
                f"{source.topic} was made anew since plan {plan.plan_id} was made (partition {place.partition} holds "
                f"{beginnings[place]} to {ends[place] - 1}, the plan wants {span.start} to {span.end - 1}): make a new plan"
            )
        if done.offset < beginnings[place] and done.offset < span.end:
            raise PlanError(
                f"offsets {done.offset} to {min(beginnings[place], span.end) - 1} of {source.topic} partition {place.partition} were "
                f"deleted by retention since plan {plan.plan_id} was made: make a new plan from what is left"
            )
    _check_last(surroundings.cluster, plan, beginnings)


def _check_last(cluster: Cluster, plan: ReplayPlan, beginnings: dict[TopicPartition, int]) -> None:
    """Is the last record of each span the one that the plan saw? One that was compacted away tells nothing."""
    topic, spans = plan.source.topic, plan.source.spans
    places = {p: TopicPartition(topic, p) for p, span in spans.items() if span.size and span.last_ms >= 0}
    starts = {place: spans[p].end - 1 for p, place in places.items() if beginnings[place] < spans[p].end}
    ends = {place: offset + 1 for place, offset in starts.items()}
    for message in read_to_end(cluster, starts, ends, stop_at_open=True):
        span = spans[message.partition()]
        if message.timestamp()[1] != span.last_ms:
            raise PlanError(
                f"{topic} was made anew since plan {plan.plan_id} was made (offset {message.offset()} of partition "
                f"{message.partition()} holds another record): make a new plan"
            )


def run_plan(
    surroundings: Surroundings,
    plan: ReplayPlan,
    reason: Reason,
    options: RunOptions,
    codec: EventCodec | None = None,
    started: Callable[[Any], None] = lambda _executor: None,
) -> Tally:
    """Check, write the audit entry, take part until the plan is through. `started` gets what executes it, to `stop()` it.

    Raises a `PipelineError`; when it is a `ConfigurationError` of the checks nothing was sent.
    """
    cluster = surroundings.cluster
    if options.join:
        refuse_sharing(plan)
    partitions = check_plan(surroundings, plan)
    switch = read_switches(cluster, surroundings.control).replay(plan.plan_id)
    if switch is not None and switch.state == "cancelled":
        raise PlanError(f"plan {plan.plan_id} was cancelled by {switch.who or 'someone'}: make a new plan")
    ended = finished(surroundings, plan)
    if ended is not None:
        return ended
    if not options.join:
        admin = cluster.admin()
        try:
            refuse_second(admin, options, plan)
        finally:
            admin.close()
    if plan.target.kind == "file":
        check_target_file(Path(plan.target.file))
    executor = _executor(cluster, plan, options, partitions, codec)
    try:
        if reason.why:
            write_audit(cluster, surroundings.audit, audit_entry(plan, reason, action_of(plan)))
        options.stage("audited")
        started(executor)
    except BaseException:
        executor.close()
        raise
    return executor.run()


def _executor(
    cluster: Cluster, plan: ReplayPlan, options: RunOptions, partitions: dict[str, int], codec: EventCodec | None
) -> Executor | ToFile | FromFile:
    if plan.target.kind == "file":
        return ToFile(cluster, plan, options, codec)
    copier = _copier(plan, partitions, codec)
    if plan.source.kind == "file":
        return FromFile(cluster, plan, options, copier, codec)
    return Executor(cluster, plan, options, copier, codec)


def counts_by_results(surroundings: Surroundings, plan: ReplayPlan) -> Counter[str]:
    """What became of each record of the plan, by its results."""
    found: dict[tuple[int, int], str] = {}
    for batch in read_results(surroundings.cluster, surroundings.results, plan=plan.plan_id):
        found |= {(batch.partition, result.offset): result.outcome for result in batch.results}
    return Counter(found.values())


def finished(surroundings: Surroundings, plan: ReplayPlan) -> Tally | None:
    """The tally of a plan that is through; None while anything is left."""
    selected = (plan.preview or {}).get("selected")
    if plan.of_file:
        counts = counts_by_results(surroundings, plan)
        results = sum(counts.values())
        if not results or results != selected:
            return None
        return Tally("finished", results, selected, plan.offsets, plan.offsets, dict(counts), 0.0, 0.0)
    places = [TopicPartition(plan.source.topic, p) for p in plan.source.spans]
    positions = committed(surroundings.cluster, surroundings.group(plan.plan_id), places)
    counts = Counter()
    for place in places:
        span, last = plan.source.spans[place.partition], plan.last.get(place.partition, ())
        done = done_of(positions.get(place), span.start)
        if place not in positions or not done.complete(span.end, len(last)):
            return None
        counts += done.counts
    return Tally("finished", sum(counts.values()), selected, plan.offsets, plan.offsets, dict(counts), 0.0, 0.0)


def _copier(plan: ReplayPlan, partitions: dict[str, int], codec: EventCodec | None) -> Copier:
    if plan.fork is None:
        return copier_of(plan, partitions)
    if codec is None:
        raise ConfigurationError("a fork reads and writes values: it needs a codec")
    return Forker(plan, partitions, codec)


def audit_entry(plan: ReplayPlan, reason: Reason, action: str) -> AuditEntry:
    preview = plan.preview or {}
    counts = {name: preview[name] for name in ("selected", "offsets", "loop_capped") if name in preview}
    body = {name: value for name, value in as_json(plan).items() if name != "preview"}
    if "selected" in counts:
        body["preview"] = {"selected": counts["selected"]}
    return AuditEntry(
        at_ms=int(time.time() * 1000),
        who=reason.who,
        why=reason.why,
        action=action,
        plan=plan.plan_id,
        plan_hash=plan.hash,
        target=plan.target.text,
        counts=counts,
        command=reason.command,
        plan_body=body,
    )


def run_options(surroundings: Surroundings, plan: ReplayPlan, who: str, **chosen: Any) -> RunOptions:
    """Options with the names of these surroundings. Raises `TopologyError` when the results topic is missing."""
    cluster = surroundings.cluster
    results = ResultsPlace(surroundings.results, require_topic(cluster, surroundings.results))
    require_topic(cluster, surroundings.audit)
    options = RunOptions(surroundings.group(plan.plan_id), results, surroundings.control, who)
    return replace(options, **chosen)


def plan_by_id(surroundings: Surroundings, plan_id: str) -> ReplayPlan:
    """The plan as the audit has it. Raises `PlanError` when it never ran, or was too large to be kept there."""
    found = None
    for _, entry in read_audit(surroundings.cluster, surroundings.audit, plan_id):
        if entry.plan_body is not None:
            found = entry.plan_body
    if found is None:
        raise PlanError(f"plan {plan_id} is not on record here: give its file, or see `pipeline replay list`")
    return from_json(found, f"plan {plan_id}")
