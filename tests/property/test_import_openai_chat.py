"""The importer takes any JSON: it never raises, and what it makes is always a whole, encodable, repeatable run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.emit.fleet import behaviour_of
from pipeline.emit.openai_chat import ImportOptions, import_run
from pipeline.emit.transcripts import read_runs
from pipeline.model.events import RunCompleted, RunFailed, RunStarted

TEXT = st.text(st.characters(codec=None), max_size=20)
LEAF = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "function", "developer", "Assistant", "oracle"])
CALL = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON | st.sampled_from(["c1", "c2"]),
        "function": JSON | st.fixed_dictionaries({"name": TEXT | JSON, "arguments": JSON}),
        "name": TEXT,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES | JSON},
    optional={
        "content": JSON | st.lists(st.fixed_dictionaries({"type": TEXT, "text": JSON})),
        "tool_calls": st.lists(CALL | JSON, max_size=3) | JSON,
        "function_call": CALL | JSON,
        "tool_call_id": st.sampled_from(["c1", "c2"]) | JSON,
        "name": TEXT | JSON,
        "usage": JSON | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), JSON),
        "timestamp": JSON,
        "finish_reason": JSON,
        "model": JSON,
    },
)
TRANSCRIPT = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | JSON, max_size=8)},
    optional=dict.fromkeys(("task_id", "trial", "reward", "agent", "tenant", "model", "created", "run_id"), JSON),
)
OPTIONS = ImportOptions("property")


@settings(max_examples=300, deadline=None)
@given(TRANSCRIPT | JSON)
def test_any_json_becomes_a_whole_run_or_none(transcript: Any) -> None:
    result = import_run(transcript, OPTIONS)
    again = import_run(transcript, OPTIONS)
    assert (result.run_id, [e.model_dump_json() for e in result.events]) == (
        again.run_id,
        [e.model_dump_json() for e in again.events],
    )
    if not result.events:
        assert result.skipped
        return
    assert isinstance(result.events[0], RunStarted)
    assert isinstance(result.events[-1], (RunCompleted, RunFailed))
    assert [event.sequence for event in result.events] == list(range(len(result.events)))
    assert [event.occurred_at for event in result.events] == sorted(event.occurred_at for event in result.events)
    assert len({event.event_id for event in result.events}) == len(result.events)
    for event in result.events:
        event.model_dump_json().encode()
        assert event.occurred.year <= 9999
        behaviour_of(event)


@settings(max_examples=100, deadline=None)
@given(st.lists(TRANSCRIPT, max_size=4), st.sampled_from(["lines", "array", "pretty"]))
def test_any_file_is_read_to_its_end(transcripts: list[Any], shape: str) -> None:
    lines = [json.dumps(item) for item in transcripts]
    text = {"lines": "\n".join(lines), "array": json.dumps(transcripts), "pretty": json.dumps(transcripts, indent=1)}[
        shape
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_text(text)
        assert len(list(read_runs(path, OPTIONS))) == len(transcripts)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x1f\x8b")
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_bytes(data)
        for result, place in read_runs(path, OPTIONS):
            assert result.events or result.skipped
            assert place.line >= 1
