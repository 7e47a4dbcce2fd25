"""Transcripts in OpenAI chat format: what becomes of each message, in the shapes that are out there, and what is said of the rest."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.import_ import import_file, source_name
from pipeline.emit.openai_chat import BASE_MS, ImportedRun, ImportOptions, import_run
from pipeline.emit.transcripts import read_runs, read_values
from pipeline.model.errors import ConfigurationError

OPTIONS = ImportOptions("test")


def run(*messages: Any, **more: Any) -> ImportedRun:
    return import_run({"task_id": 1, "trial": 0, "messages": list(messages), **more}, OPTIONS, line=7)


def names(result: ImportedRun) -> list[str]:
    return [type(event).__name__ for event in result.events]


def one(result: ImportedRun, kind: str) -> Any:
    (found,) = [event for event in result.events if type(event).__name__ == kind]
    return found


def call(name: str, arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_a_whole_conversation() -> None:
    result = run(
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call("look", '{"id": 1}', id="c1")]},
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "found"},
        {"role": "assistant", "content": "here you are"},
        reward=1.0,
    )
    assert names(result) == [
        "RunStarted",
        "Message",
        "Message",
        "ModelCall",
        "ToolCall",
        "ToolResult",
        "ModelCall",
        "RunCompleted",
    ]
    assert result.run_id == "test-1-0"
    assert result.skipped == ()
    assert [event.sequence for event in result.events] == list(range(8))
    assert one(result, "RunStarted").input == "hi"
    assert one(result, "ToolCall").arguments == '{"id": 1}'
    answer = one(result, "ToolResult")
    assert (answer.tool, answer.call_id, answer.status, answer.content) == ("look", "c1", "OK", "found")
    assert answer.parent_id == one(result, "ToolCall").event_id
    end = one(result, "RunCompleted")
    assert (end.model_calls, end.tool_calls, end.output) == (2, 1, "here you are")


def test_importing_twice_gives_the_same_events() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert run(*messages) == run(*messages)
    other = import_run({"task_id": 1, "trial": 1, "messages": messages}, OPTIONS)
    assert not {e.event_id for e in other.events} & {e.event_id for e in run(*messages).events}


@pytest.mark.parametrize(
    ("reward", "kind"),
    [
        (1.0, "RunCompleted"),
        (1, "RunCompleted"),
        (True, "RunCompleted"),
        (None, "RunCompleted"),
        (0.0, "RunFailed"),
        (0.5, "RunFailed"),
    ],
)
def test_the_reward_decides_the_end(reward: Any, kind: str) -> None:
    assert names(run(reward=reward))[-1] == kind


def test_content_as_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}, "two"]
    result = run({"role": "user", "content": parts})
    assert one(result, "Message").content == "one\ntwo"
    (skipped,) = result.skipped
    assert (skipped.line, skipped.path) == (7, "messages[0].content")
    assert "image_url" in skipped.reason


def test_missing_call_ids_are_matched_by_name_then_order() -> None:
    result = run(
        {"role": "assistant", "tool_calls": [call("a"), call("b"), call("c")]},
        {"role": "tool", "name": "b", "content": "for b"},
        {"role": "tool", "content": "for a"},
        {"role": "tool", "content": "for c"},
    )
    calls = {event.call_id: event.tool for event in result.events if type(event).__name__ == "ToolCall"}  # type: ignore[attr-defined]
    answers = [(calls[e.call_id], e.content) for e in result.events if type(e).__name__ == "ToolResult"]  # type: ignore[attr-defined]
    assert answers == [("b", "for b"), ("a", "for a"), ("c", "for c")]
    assert result.skipped == ()


def test_the_legacy_function_call() -> None:
    result = run(
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "look", "content": "found"},
    )
    assert one(result, "ToolCall").call_id == one(result, "ToolResult").call_id
    assert result.skipped == ()


def test_a_result_nobody_asked_for_is_kept_and_said() -> None:
    result = run({"role": "tool", "tool_call_id": "zz", "name": "look", "content": "found"})
    assert (one(result, "ToolResult").tool, one(result, "ToolResult").call_id) == ("look", "zz")
    assert "no open tool call" in result.skipped[0].reason


def test_an_error_of_a_tool() -> None:
    result = run({"role": "assistant", "tool_calls": [call("a")]}, {"role": "tool", "content": "Error: not found"})
    assert (one(result, "ToolResult").status, one(result, "ToolResult").error) == ("ERROR", "Error: not found")


@pytest.mark.parametrize(
    ("given", "kept"), [({"q": 1}, '{"q": 1}'), ("not json", '"not json"'), (None, "{}"), ("", "{}"), ("[1]", "[1]")]
)
def test_arguments_are_always_one_json_document(given: Any, kept: str) -> None:
    assert one(run({"role": "assistant", "tool_calls": [call("a", given)]}), "ToolCall").arguments == kept


def test_what_is_not_understood_is_said_with_its_path() -> None:
    result = run(
        {"role": "oracle", "content": "x"},
        "just text",
        {"role": "assistant", "tool_calls": [{"function": {}}, 5]},
        {"role": "assistant", "tool_calls": "no list"},
        reward="good",
    )
    assert [item.path for item in result.skipped] == [
        "messages[0].role",
        "messages[1]",
        "messages[2].tool_calls[0]",
        "messages[2].tool_calls[1]",
        "messages[3].tool_calls",
        "reward",
    ]
    assert names(result) == ["RunStarted", "ModelCall", "ModelCall", "RunCompleted"]


def test_times_of_the_data_are_used_and_never_go_back() -> None:
    result = run(
        {"role": "user", "content": "a", "timestamp": "2024-05-15T15:00:00Z"},
        {"role": "user", "content": "b", "created_at": 1_715_785_201},
        {"role": "user", "content": "c", "timestamp": 1_715_785_200_500},
        {"role": "user", "content": "d"},
    )
    base = 1_715_785_200_000
    assert [event.occurred_at - base for event in result.events[1:5]] == [0, 1_000, 1_000, 2_000]
    assert run({"role": "user", "content": "x"}).events[0].occurred_at == BASE_MS


def test_usage_and_model_are_taken_over() -> None:
    message = {
        "role": "assistant",
        "content": "x",
        "model": "m1",
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    result = run(message)
    assert (one(result, "ModelCall").model, one(result, "RunCompleted").input_tokens) == ("m1", 5)


def test_run_ids_of_odd_names_are_uuids() -> None:
    odd = import_run({"task_id": "a/b c", "messages": []}, OPTIONS).run_id
    assert len(odd) == 36
    assert odd == import_run({"task_id": "a/b c", "messages": []}, OPTIONS).run_id
    assert import_run({"messages": []}, OPTIONS).run_id != import_run({"messages": [{}]}, OPTIONS).run_id


def write(path: Path, text: str, packed: bool = False) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


RUNS = [
    {"task_id": n, "trial": 0, "reward": 1.0, "messages": [{"role": "user", "content": f"é {n}, [{{"}]}
    for n in range(30)
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, RUNS)),
        "\ufeff" + "\n\n".join(map(json.dumps, RUNS)) + "\n",
        json.dumps(RUNS),
        json.dumps(RUNS, indent=2, ensure_ascii=False),
        "\n[\n" + ",\n".join(map(json.dumps, RUNS)) + "\n]\n",
    ],
)
def test_files_in_every_shape(tmp_path: Path, text: str, packed: bool) -> None:
    path = write(tmp_path / "x.json", text, packed)
    found = [result for result, _ in read_runs(path, OPTIONS)]
    assert [result.run_id for result in found] == [f"test-{n}-0" for n in range(30)]
    assert all(result.skipped == () for result in found)


def test_one_run_over_many_lines_and_bare_lists_of_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", json.dumps(RUNS[0], indent=1))
    assert [result.run_id for result, _ in read_runs(path, OPTIONS)] == ["test-0-0"]
    path = write(tmp_path / "bare.jsonl", "\n".join(json.dumps(r["messages"]) for r in RUNS))
    assert len({result.run_id for result, _ in read_runs(path, OPTIONS)}) == 30


def test_a_bad_line_is_said_with_its_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [
        json.dumps(RUNS[0]),
        "{broken",
        json.dumps(RUNS[1]),
        "[" * 100_000,
        '{"no": "messages"}',
        json.dumps(RUNS[2]),
    ]
    path = write(tmp_path / "x.jsonl", "\n".join(lines))
    results = [result for result, _ in read_runs(path, OPTIONS)]
    assert [bool(result.events) for result in results] == [True, False, True, False, False, True]
    assert [item.line for result in results for item in result.skipped] == [2, 4, 5]


def test_a_broken_array_ends_with_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", "[" + json.dumps(RUNS[0]) + ",\n{oops}, " + json.dumps(RUNS[1]) + "]")
    values = list(read_values(path))
    assert [value.error is None for value in values] == [True, False]
    assert values[1].line == 2


def test_a_cut_off_gzip_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    text = "\n".join(json.dumps({**run, "pad": [hash((n, i)) for i in range(500)]}) for n, run in enumerate(RUNS))
    path.write_bytes(gzip.compress(text.encode())[:-4_000])
    values = list(read_values(path))
    assert values[0].error is None
    assert "breaks off" in (values[-1].error or "")


def test_the_same_run_twice_is_imported_once_and_another_under_the_same_name_is_kept(tmp_path: Path) -> None:
    other = {**RUNS[0], "reward": 0.0}
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, [RUNS[0], RUNS[0], other])))
    results = [result for result, _ in read_runs(path, OPTIONS)]
    assert [(result.run_id, bool(result.events)) for result in results] == [
        ("test-0-0", True),
        ("test-0-0", False),
        ("test-0-0-2", True),
    ]


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        list(read_values(tmp_path / "nothing"))


def test_source_names() -> None:
    assert [source_name(Path(p)) for p in ("a/tau.jsonl.gz", "x.json", "plain")] == ["tau", "x", "plain"]


def test_two_hundred_real_runs(real_runs: Path) -> None:
    result = import_file(real_runs, ImportOptions("tau-bench-airline"), None, None, lambda _done: None)
    assert (result.runs, result.bad_lines, result.skipped_count) == (200, 0, 0)
    assert result.by_type == {
        "RunStarted": 200,
        "Message": 1490 + 200,
        "ModelCall": 1290 + 1164,
        "ToolCall": 1164,
        "ToolResult": 1164,
        "RunCompleted": 84,
        "RunFailed": 116,
    }
    runs = [run for run, _ in read_runs(real_runs, ImportOptions("tau-bench-airline"))]
    ids = Counter(event.event_id for run in runs for event in run.events)
    assert len(ids) == sum(ids.values()) == 6_872
    assert len({run.run_id for run in runs}) == 200
