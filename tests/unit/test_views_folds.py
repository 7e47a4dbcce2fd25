"""The view folds: what they count, that twice is once, and that a crash at any point of a batch changes no total."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.errors import UndecodableError
from pipeline.model.views import RunRate, RunSummary
from pipeline.views import batch, rates, sequences, summaries

KINDS = ("RunStarted", "ModelCall", "ToolCall", "ToolResult", "Step", "Message", "Memory", "RunFailed", "RunCompleted")
Event = tuple[str, dict[str, Any]]


def event(kind: str, sequence: int, run: str = "r1", at: int = 1_000, **more: Any) -> Event:
    base = {
        "event_id": f"{run}-{sequence}",
        "run_id": run,
        "sequence": sequence,
        "occurred_at": at,
        "agent": "support",
        "tenant": "acme",
    }
    return f"agent.run.{kind}", {**base, "parent_id": None, "step": None, **more}


def summary_of(events: Iterable[Event]) -> summaries.Summary:
    summary = None
    for name, fields in events:
        summary = summaries.fold(summary, name, fields)
    assert summary is not None
    return summary


def a_run() -> list[Event]:
    return [
        event("RunStarted", 0, at=1_000),
        event("Message", 1, at=1_100),
        event("ModelCall", 2, at=1_200, step=0, input_tokens=100, output_tokens=20),
        event("ToolCall", 3, at=1_300, step=0, tool="search", call_id="a"),
        event("ToolResult", 4, at=1_400, step=0, tool="search", call_id="a", status="TIMEOUT"),
        event("ModelCall", 5, at=1_500, step=1, input_tokens=50, output_tokens=5),
        event(
            "RunFailed",
            6,
            at=2_000,
            error_class="Budget",
            error_message="over",
            steps=0,
            model_calls=1,
            input_tokens=0,
            cost_usd=0.5,
        ),
    ]


def test_a_summary_counts_what_happened() -> None:
    fields = summaries.fields(summary_of(a_run()))
    assert fields == {
        "run_id": "r1",
        "agent": "support",
        "tenant": "acme",
        "state": "FAILED",
        "started_at": 1_000,
        "ended_at": 2_000,
        "updated_at": 2_000,
        "last_sequence": 6,
        "events": 7,
        "messages": 1,
        "steps": 2,
        "model_calls": 2,
        "tool_calls": 1,
        "tool_errors": 1,
        "input_tokens": 150,
        "output_tokens": 25,
        "cost_usd": 0.5,
        "duration_ms": 1_000,
        "last_error": "Budget: over",
    }


def test_the_fields_fit_their_contracts() -> None:
    RunSummary(**summaries.fields(summary_of(a_run())))
    name, fields = a_run()[2]
    RunRate(**rates.fields(rates.merge(None, rates.fold(None, name, fields, 3, 7))))


def test_totals_stated_at_the_end_cover_events_that_were_lost() -> None:
    ended = event(
        "RunCompleted",
        9,
        at=5_000,
        steps=4,
        model_calls=7,
        tool_calls=3,
        input_tokens=900,
        output_tokens=90,
        duration_ms=4_321,
    )
    fields = summaries.fields(summary_of([*a_run()[:3], ended]))
    assert (fields["steps"], fields["model_calls"], fields["input_tokens"], fields["duration_ms"]) == (4, 7, 900, 4_321)
    assert fields["state"] == "COMPLETED"


def test_a_late_event_does_not_reopen_a_run() -> None:
    run = a_run()
    late = summaries.fields(summary_of([run[0], run[6], *run[1:6]]))
    assert late["state"] == "FAILED"
    assert late["last_error"] == "Budget: over"


def test_folding_leaves_its_argument_alone() -> None:
    run = a_run()
    before = summary_of(run[:3])
    copy = {**before, "seen": [list(pair) for pair in before["seen"]]}
    summaries.fold(before, *run[3])
    assert before == copy


@pytest.mark.parametrize("missing", ["run_id", "sequence", "occurred_at", "agent", "tenant"])
def test_a_record_that_is_no_run_event_is_named(missing: str) -> None:
    name, fields = event("ModelCall", 0)
    del fields[missing]
    with pytest.raises(UndecodableError, match=f"ModelCall has no {missing}"):
        summaries.fold(None, name, fields)


def test_rate_keys_are_never_shared() -> None:
    assert rates.rate_key("support", "acme", 60_000) == "support|acme|60000"
    assert rates.rate_key("a|b", "c", 0) != rates.rate_key("a", "b|c", 0)
    assert rates.rate_key("a%7Cb", "c", 0) != rates.rate_key("a|b", "c", 0)


def test_an_older_partial_never_replaces_a_newer() -> None:
    first = rates.fold(None, *event("ModelCall", 0, input_tokens=3), 0, 10)
    second = rates.fold(first, *event("ModelCall", 1, input_tokens=4), 0, 11)
    other = rates.fold(None, *event("ToolCall", 0, run="r2"), 1, 0)
    total = rates.merge(rates.merge(rates.merge(rates.merge(None, second), first), other), second)
    fields = rates.fields(total)
    assert (fields["events"], fields["model_calls"], fields["tool_calls"], fields["input_tokens"]) == (3, 2, 1, 7)


@given(st.lists(st.integers(0, 200), max_size=120))
def test_ranges_hold_exactly_what_was_added_until_they_are_full(numbers: list[int]) -> None:
    ranges: sequences.Ranges = []
    for number in numbers:
        ranges = sequences.add(ranges, number)
        assert sequences.seen(ranges, number)
    assert len(ranges) <= sequences.MAX_RANGES
    held = {n for n in range(202) if sequences.seen(ranges, n)}
    assert set(numbers) <= held
    gaps = len([n for n in set(numbers) if n - 1 not in numbers])
    if gaps <= sequences.MAX_RANGES:
        assert held == set(numbers)


def test_ranges_are_bounded() -> None:
    ranges: sequences.Ranges = []
    for number in range(0, 10_000, 2):
        ranges = sequences.add(ranges, number)
    assert len(ranges) == sequences.MAX_RANGES
    assert not sequences.seen(ranges, 9_999)
    assert sequences.seen(ranges, 1)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events of a few runs, each numbered without repeats, in one partition's order."""
    out = []
    counters: dict[str, int] = {}
    for _ in range(draw(st.integers(1, 40))):
        run = draw(st.sampled_from(("r1", "r2", "r3")))
        counters[run] = counters.get(run, -1) + draw(st.integers(1, 2))
        more = {"input_tokens": draw(st.integers(0, 9)), "status": draw(st.sampled_from(("UNKNOWN", "OK", "ERROR")))}
        out.append(event(draw(st.sampled_from(KINDS)), counters[run], run, draw(st.integers(0, 180_000)), **more))
    return out


@given(histories(), st.integers(0, 2**32))
def test_folding_with_duplicates_in_any_order_is_folding_once(history: list[Event], seed: int) -> None:
    rng = random.Random(seed)
    run = [one for one in history if one[1]["run_id"] == history[0][1]["run_id"]]
    twice = run + rng.choices(run, k=len(run))
    rng.shuffle(twice)
    assert summaries.fields(summary_of(twice)) == summaries.fields(summary_of(run))


def totals(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    runs = {key: summaries.fields(value) for key, value in table.items() if "/run/" in key}
    return runs, {key: value["counts"] for key, value in table.items() if "/rate/" in key}


def replay(
    history: list[Event], rng: random.Random | None, table: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Batches over the history; with `rng`, each may die after a prefix of its writes and start again from its first offset."""
    start = 0
    while start < len(history):
        end = len(history) if rng is None else min(len(history), start + rng.randint(1, 8))
        changes = batch.Changes()
        for offset in range(start, end):
            batch.fold_record(changes, table.get, batch.Decoded(0, offset, *history[offset]))
        writes = list(changes.writes())
        if rng is not None and rng.random() < 0.5:
            table.update(writes[: rng.randint(0, len(writes))])
            start = max(0, start - rng.randint(0, 6))
            continue
        table.update(writes)
        start = end
    return totals(table)


@settings(max_examples=200)
@given(histories(), st.integers(0, 2**32))
def test_a_crash_after_any_prefix_of_a_batch_changes_no_total(history: list[Event], seed: int) -> None:
    rng = random.Random(seed)
    history = history + rng.choices(history, k=3)
    assert replay(history, rng, {}) == replay(history, None, {})


def test_a_seen_record_is_written_out_again() -> None:
    name, fields = event("ModelCall", 0)
    first = batch.Changes()
    batch.fold_record(first, {}.get, batch.Decoded(0, 5, name, fields))
    table = dict(first.writes())
    again = batch.Changes()
    batch.fold_record(again, table.get, batch.Decoded(0, 5, name, fields))
    assert dict(again.writes()) == table
    assert (first.counted, again.counted) == (1, 0)


def test_a_bad_record_leaves_the_batch_as_it_was() -> None:
    changes = batch.Changes()
    batch.fold_record(changes, {}.get, batch.Decoded(0, 0, *event("ModelCall", 0)))
    before = dict(changes.writes())
    with pytest.raises(TypeError):
        batch.fold_record(changes, {}.get, batch.Decoded(0, 1, *event("ModelCall", 1, input_tokens="many")))
    assert dict(changes.writes()) == before


def test_partitions_of_one_process_do_not_mix_their_shares_of_a_rate() -> None:
    changes = batch.Changes()
    batch.fold_record(changes, {}.get, batch.Decoded(0, 7, *event("ModelCall", 0)))
    batch.fold_record(changes, {}.get, batch.Decoded(1, 3, *event("ModelCall", 0, run="r2")))
    assert [partial["counts"]["model_calls"] for partial in changes.partials.values()] == [1, 1]
    assert {partial["partition"] for partial in changes.partials.values()} == {0, 1}


@given(histories(), st.integers(0, 2**32))
def test_a_producer_that_sends_twice_changes_no_count(history: list[Event], seed: int) -> None:
    copies = random.Random(seed).choices(history, k=5)
    (_, once), (_, twice) = replay(history, None, {}), replay(history + copies, None, {})
    assert once == twice
