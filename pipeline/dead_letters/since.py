"""What became of dead letters that `pipeline why` found: redriven and done, or given up since. Told by the results and the audit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.dead_letters.ingest import CLOCKS_APART_MS
from pipeline.dead_letters.states import State, state_after
from pipeline.inspect.explain import Explanation
from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.topics import AUDIT_TOPIC, RESULTS_TOPIC
from pipeline.replay.audit import read_audit
from pipeline.replay.joining import offsets_at
from pipeline.replay.results import read_results


def since(cluster: Cluster, prefix: str, found: Sequence[Explanation]) -> list[Explanation]:
    """The same explanations with `since` of each dead letter; one whose copy was sent to its group and is nowhere any more is done.

    That copy would be found itself, in its lane or as a dead letter of that replay. `prefix`: of the environment's topics.
    """
    letters = {(e.lane, e.partition, e.lane_offset): e for e in found if e.state == "dead letter"}
    if not letters:
        return list(found)
    states: dict[tuple[str, int, int], tuple[State, str]] = {}
    sent: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    starts = _starts(cluster, prefix + RESULTS_TOPIC, min(e.first_failed_ms for e in letters.values()))
    for batch in read_results(cluster, prefix + RESULTS_TOPIC, starts=starts):
        if batch.action == "replay":  # that was a copy to a file or another topic
            continue
        for result in batch.results:
            place = (batch.topic, batch.partition, result.offset)
            before = states.get(place, ("open", ""))[0]
            after = state_after(result.outcome, before)
            if place in letters and after != before:
                states[place] = after, batch.plan
            if place in letters and result.outcome == "written":
                sent[place].append(batch.plan)
    gone = {plan for plans in sent.values() for plan in plans} - {e.replay_id for e in found}
    targets = {entry.plan: entry.target for _, entry in read_audit(cluster, prefix + AUDIT_TOPIC)} if gone else {}
    for place, plans in sent.items():
        state, plan = states[place]
        if state == "redriven":
            states[place] = state, _to_group(plans, plan, letters[place].group, targets)
    return [_told(e, *states.get((e.lane, e.partition, e.lane_offset), ("open", "")), found, targets) for e in found]


def _to_group(plans: Sequence[str], first: str, group: str, targets: Mapping[str, str]) -> str:
    """The plan that sent a letter to its group. Copies to files and topics were called redrives once: such a one may be before it."""
    if not targets.get(first, "").startswith(("file ", "topic ")):
        return first
    return next((plan for plan in plans if targets.get(plan, "").startswith(f"group {group} (")), first)


def _starts(cluster: Cluster, results_topic: str, failed_ms: int) -> dict[TopicPartition, int]:
    """Nothing was done to a letter before it failed. Empty where the topic is missing."""
    admin = cluster.admin()
    try:
        spec = admin.topics([results_topic]).get(results_topic)
    finally:
        admin.close()
    places = [TopicPartition(results_topic, p) for p in range(spec.partitions)] if spec is not None else []
    return offsets_at(cluster, places, max(0, failed_ms - CLOCKS_APART_MS)) if places else {}


def _told(
    one: Explanation, state: State, plan: str, found: Sequence[Explanation], targets: Mapping[str, str]
) -> Explanation:
    """`targets`: where plans sent to, as the audit has it; a replay may have sent a letter to any topic."""
    if one.state != "dead letter" or state == "open":
        return one
    text = f"{state} by {plan}"
    copies = {(e.group, e.topic, e.partition, e.origin_offset) for e in found if e.replay_id == plan}
    done = (one.group, one.topic, one.partition, one.origin_offset) not in copies
    if state == "redriven" and done and targets.get(plan, "").startswith(f"group {one.group} ("):
        return replace(one, state="done", since=text)
    return replace(one, since=text)
