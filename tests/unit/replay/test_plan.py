"""Plans as values and files; results and audit entries there and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.inspect.appending import Entry, append
from pipeline.memory import connect
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import TopologyError
from pipeline.replay import audit, results
from pipeline.replay.plan import (
    Fork,
    PlanError,
    ReplayPlan,
    Selection,
    Source,
    Span,
    Target,
    as_json,
    from_json,
    from_text,
    new_plan_id,
    to_text,
)
from pipeline.replay.results import Result, ResultBatch

PLAN = ReplayPlan(
    "rp-0123456789ab",
    1_700_000_000_000,
    "ann@box",
    Source("topic", "agent.run.events", 2, {0: Span(5, 90, 3), 1: Span(0, 7)}),
    Selection(keys=(b"r1", b"\xff\x00"), types=("ToolCall",), from_ms=5, where="attempt >= 3", positions={1: (2, 5)}),
    Target("lane", "billing", {"agent.run.events": "agent.run.events.billing.replay"}),
    rate=250.5,
    last={0: (9, 4)},
)

_numbers = st.integers(0, 2**40)
_by_partition = st.dictionaries(st.integers(0, 50), st.lists(_numbers, max_size=5).map(tuple), max_size=3)
_spans = st.dictionaries(st.integers(0, 50), st.builds(Span, _numbers, _numbers, _numbers, _numbers), max_size=4)
_selections = st.builds(
    Selection,
    keys=st.lists(st.binary(max_size=8), max_size=3).map(tuple),
    types=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    tenants=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    from_ms=st.none() | _numbers,
    to_ms=st.none() | _numbers,
    where=st.text(max_size=20),
    positions=st.none() | _by_partition,
)
_plans = st.builds(
    ReplayPlan,
    plan_id=st.builds(new_plan_id),
    created_ms=_numbers,
    who=st.text(max_size=10),
    source=st.builds(
        Source, st.sampled_from(["topic", "dead_letters", "file"]), st.text(max_size=9), st.integers(1, 9), _spans
    ),
    select=_selections,
    target=st.builds(
        Target,
        st.sampled_from(["lane", "topic", "file"]),
        st.text(max_size=5),
        st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        st.text(max_size=5),
    ),
    fork=st.none() | st.builds(Fork, st.text(max_size=5)),
    to_step=st.none() | _numbers,
    replays_max=st.integers(1, 9),
    rate=st.floats(0, 1e6),
    last=_by_partition,
)


@given(_plans)
def test_a_plan_is_the_same_after_its_file(plan: ReplayPlan) -> None:
    again = from_text(to_text(plan))
    assert again == plan
    assert again.hash == plan.hash


def test_the_preview_is_not_part_of_the_hash_and_everything_else_is() -> None:
    assert replace(PLAN, preview={"selected": 3}).hash == PLAN.hash
    other = {
        replace(PLAN, plan_id="rp-000000000000").hash,
        replace(PLAN, rate=1.0).hash,
        replace(PLAN, last={}).hash,
        replace(PLAN, source=replace(PLAN.source, spans={0: Span(5, 91, 3), 1: Span(0, 7)})).hash,
        replace(PLAN, select=replace(PLAN.select, positions=None)).hash,
        replace(PLAN, fork=Fork("r2")).hash,
        PLAN.hash,
    }
    assert len(other) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found | {"rate": 9.0}, "was changed after it was made"),
        (lambda found: found | {"version": 2}, "version 2"),
        (lambda found: {k: v for k, v in found.items() if k != "select"}, "not complete"),
        (lambda found: found | {"source": "t"}, "not complete"),
    ],
)
def test_a_plan_that_was_tampered_with_is_refused(change: object, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        from_json(change(as_json(PLAN)), "p.json")  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "nonsense"])
def test_what_is_no_plan_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(PlanError, match="pipeline replay plan"):
        from_text(text)


def test_where_records_of_a_topic_go() -> None:
    assert PLAN.target.topic_for("agent.run.events") == "agent.run.events.billing.replay"
    assert PLAN.target.topic_for("other") is None
    assert Target("topic", topics={"": "x"}).topic_for("anything") == "x"


def batch(*found: Result, errors: dict[int, str] | None = None) -> ResultBatch:
    return ResultBatch("rp-1", "replay", "t", 3, "ann", 7, found, errors or {})


def test_results_are_read_back_in_order_and_only_those_of_the_plan() -> None:
    cluster = connect("memory://results")
    cluster.admin().create_topics([TopicSpec("r", 6)])
    first = batch(Result(5, "written", 3, 9), Result(6, "loop_capped"))
    second = batch(Result(7, "failed"), errors={7: "too large"})
    other = replace(first, plan="rp-2")
    for each in (first, other, second):
        append(cluster, "r", results.entries(each))
    append(cluster, "r", [Entry(b"t/3", b"{rp-1")])
    found = list(results.read_results(cluster, "r", plan="rp-1"))
    assert [list(each.results) for each in found] == [list(first.results), list(second.results)]
    assert found[1].errors == {7: "too large"}
    assert len(list(results.read_results(cluster, "r", key=results.record_key("t", 3)))) == 3
    assert list(results.read_results(cluster, "r", key=b"t/4")) == []
    assert list(results.read_results(cluster, "missing")) == []


def test_a_large_batch_is_cut_and_keeps_every_result_and_error() -> None:
    many = [Result(n, "failed") for n in range(1_200)]
    made = results.entries(batch(*many, errors={n: f"e{n}" * 400 for n in range(1_200)}))
    assert max(len(entry.value or b"") for entry in made) < 500_000
    back = [results.decode(entry.value) for entry in made]
    assert [r for each in back for r in each.results] == many
    assert sum(len(each.errors) for each in back) == 1_200
    assert all(set(each.errors) == {r.offset for r in each.results} for each in back)


@pytest.mark.parametrize("value", [None, b"", b"[]", b"{}", b'{"plan":1}', b'{"results":[[1]]}'])
def test_a_result_record_that_is_not_readable_is_an_error(value: bytes | None) -> None:
    with pytest.raises(results.ResultRecordError):
        results.decode(value)


def test_an_audit_entry_is_acknowledged_and_read_back() -> None:
    cluster = connect("memory://audit")
    cluster.admin().create_topics([TopicSpec("a", 1)])
    entry = audit.AuditEntry(5, "ann", "why not", "replay", PLAN.plan_id, PLAN.hash, "t", {"n": 1}, "x", as_json(PLAN))
    assert audit.write_audit(cluster, "a", entry) == 0
    assert audit.write_audit(cluster, "a", replace(entry, plan="rp-2", plan_body=None)) == 1
    assert list(audit.read_audit(cluster, "a", PLAN.plan_id)) == [(0, entry)]
    assert [offset for offset, _ in audit.read_audit(cluster, "a")] == [0, 1]
    assert cluster.admin().end_offsets([TopicPartition("a", 0)]) == {("a", 0): 2}


def test_without_its_topic_no_audit_entry_is_written() -> None:
    cluster = connect("memory://no-audit")
    with pytest.raises(TopologyError, match="pipeline topics apply"):
        audit.write_audit(cluster, "a", audit.AuditEntry(1, "a", "b", "c"))
    assert cluster.admin().topic_names() == []


def test_a_plan_too_large_for_its_audit_entry_is_left_out() -> None:
    entry = audit.AuditEntry(1, "a", "b", "c", plan_body={"offsets": list(range(200_000))})
    assert audit.decode(audit.encode(entry)) == replace(entry, plan_body=None)
    assert json.loads(audit.encode(replace(entry, plan_body={"a": 1})))["plan_body"] == {"a": 1}


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3) | st.just(-1)), min_size=1, max_size=60))
@example([(1, 1), (1, -1), (1, 2)])
def test_runs_stand_for_the_very_records(steps: list[tuple[int, int]]) -> None:
    offset, target, offsets, targets = 0, 100, [], []
    for further, on in steps:
        offset += further
        target += max(on, 0)
        offsets.append(offset)
        targets.append(target if on > 0 else -1)
    made = results.runs("written", offsets, 2, targets)
    back = results.decode(results.encode(batch(*made))).results
    assert [r.offset for r in back] == offsets
    assert [r.target_offset for r in back] == targets
    assert {(r.outcome, r.target_partition, r.records) for r in back} == {("written", 2, 1)}


def test_a_million_records_in_a_row_are_one_result() -> None:
    whole = range(500_000)
    assert results.runs("written", whole, 0, range(9, 500_009)) == [Result(0, "written", 0, 9, 500_000)]
    with pytest.raises(results.ResultRecordError):
        results.decode(results.encode(batch(Result(0, "written", 0, 0, 2_000_000))))
