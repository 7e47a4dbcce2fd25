"""Compatibility by the specification's resolution rules, and `pipeline schemas` on top of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.schemas import app
from pipeline.codec.catalogue import SchemaCatalogue, schemas_directory
from pipeline.codec.compatibility import LEVELS, check_versions, problems
from pipeline.codec.schema import parse
from pipeline.codec.verdict import check_history, freeze
from pipeline.model.errors import ConfigurationError, IncompatibleSchema


def record(*fields: Any, name: str = "R") -> dict[str, Any]:
    """A record of (field name, type) or (field name, type, (key, value) ...)."""
    members = [{"name": n, "type": t, **dict(more)} for n, t, *more in fields]
    return {"type": "record", "name": name, "fields": members}


def enum(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "E", "symbols": list(symbols), **more}


DEFAULT = ("default", None)
READABLE: list[tuple[Any, Any]] = [
    ("long", "int"),
    ("double", "long"),
    ("float", "int"),
    ("bytes", "string"),
    ("string", "bytes"),
    (["null", "int"], "int"),
    ("long", ["int", "long"]),
    (["null", "double"], ["null", "int"]),
    (enum("A", "B"), enum("A")),
    (enum("A", default="A"), enum("A", "B")),
    ({"type": "array", "items": "long"}, {"type": "array", "items": "int"}),
    ({"type": "map", "values": ["null", "int"]}, {"type": "map", "values": "int"}),
    (record(("a", "int"), ("b", ["null", "int"], DEFAULT)), record(("a", "int"))),
    (record(("a", "int")), record(("a", "int"), ("b", "string"))),
    (record(("new", "int", ("aliases", ["old"]))), record(("old", "int"))),
    ({**record(("a", "int"), name="New"), "aliases": ["Old"]}, record(("a", "int"), name="Old")),
    ({"type": "record", "name": "x.R", "fields": []}, {"type": "record", "name": "y.R", "fields": []}),
]
UNREADABLE: list[tuple[Any, Any, str]] = [
    ("int", "long", "the type is a long and is read as a int"),
    ("int", ["null", "int"], "a null"),
    ("string", "int", "a int"),
    (["null", "string"], "int", "which the reader lacks"),
    (enum("A"), enum("A", "B"), "can be B"),
    (record(("a", "int")), record(("b", "int")), "a is not written and has no default"),
    (record(("a", "int")), record(("a", "string")), "a is a string"),
    (record(("a", record(("b", "int"), name="I"))), record(("a", record(name="I"))), r"a\.b is not written"),
    ({"type": "array", "items": "int"}, {"type": "array", "items": "string"}, r"\[\] is a string"),
    ({"type": "map", "values": "int"}, {"type": "array", "items": "int"}, "a array"),
    ({"type": "fixed", "name": "F", "size": 4}, {"type": "fixed", "name": "F", "size": 8}, "has 8 bytes"),
    (record(("a", "int"), name="New"), record(("a", "int"), name="Old"), "record Old"),
]


@pytest.mark.parametrize(("reader", "writer"), READABLE, ids=str)
def test_readable(reader: Any, writer: Any) -> None:
    assert problems(parse(reader), parse(writer)) == []


@pytest.mark.parametrize(("reader", "writer", "words"), UNREADABLE, ids=str)
def test_unreadable_with_the_path(reader: Any, writer: Any, words: str) -> None:
    found = problems(parse(reader), parse(writer))
    assert len(found) == 1
    with pytest.raises(IncompatibleSchema, match=words):
        check_versions(parse(reader), [parse(writer)], "BACKWARD")


def test_levels_look_in_their_direction_and_as_far_as_they_say() -> None:
    one = parse(record(("a", "int")))
    with_default = parse(record(("a", "int"), ("b", "int", ("default", 0))))
    required = parse(record(("a", "int"), ("b", "int")))
    check_versions(required, [with_default], "FULL")
    check_versions(required, [one, with_default], "BACKWARD")
    check_versions(required, [one, with_default], "FORWARD_TRANSITIVE")
    check_versions(required, [one], "NONE")
    for level in ("BACKWARD_TRANSITIVE", "FULL_TRANSITIVE"):
        with pytest.raises(IncompatibleSchema, match="can't read version 1: b is not written"):
            check_versions(required, [one, with_default], level)
    with pytest.raises(IncompatibleSchema, match="version 1 can't read it"):
        check_versions(one, [required], "FORWARD")
    with pytest.raises(ConfigurationError, match=LEVELS[-1]):
        check_versions(one, [], "FULLY")


def test_the_present_contracts_fit_their_committed_history() -> None:
    verdicts = check_history(SchemaCatalogue.load())
    assert [verdict.problem for verdict in verdicts if verdict.problem] == []
    assert all(verdict.versions for verdict in verdicts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with one contract and its history."""
    shutil.copy(schemas_directory() / "Message.avsc", tmp_path / "Note.avsc")
    text = (tmp_path / "Note.avsc").read_text().replace('"Message"', '"Note"').replace("MessageRole", "NoteRole")
    (tmp_path / "Note.avsc").write_text(text)
    assert [path.name for path in freeze(tmp_path)] == ["1.avsc"]
    return tmp_path


def change(folder: Path, **field: Any) -> None:
    definition = json.loads((folder / "Note.avsc").read_text())
    definition["fields"].append(field)
    (folder / "Note.avsc").write_text(json.dumps(definition))


def run(*args: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stdout.strip().splitlines()
    return result.exit_code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else result.stdout


def test_check_accepts_what_is_committed(folder: Path) -> None:
    code, answer = run("check", "--schemas", str(folder), "--json")
    assert code == 0
    assert answer["ok"]
    assert answer["registry"] == "not asked"
    assert "agent.run.Note" in {row["record"] for row in answer["checks"]}
    code, text = run("check", "--schemas", str(folder))
    assert code == 0
    assert "agent.run.Note" in text


def test_check_wants_changes_committed_and_freezes_them(folder: Path) -> None:
    change(folder, name="lang", type=["null", "string"], default=None, doc="Language.")
    code, answer = run("check", "--schemas", str(folder), "--json")
    [row] = [row for row in answer["checks"] if row["problem"]]
    assert code == 1
    assert "--freeze" in row["problem"]
    assert row["record"] == "agent.run.Note"
    code, answer = run("check", "--schemas", str(folder), "--freeze", "--json")
    assert code == 0
    assert [Path(path).name for path in answer["added"]] == ["2.avsc"]
    assert run("check", "--schemas", str(folder), "--freeze", "--json")[1]["added"] == []


def test_check_says_what_would_break(folder: Path) -> None:
    change(folder, name="lang", type="string", doc="Language.")
    code, answer = run("check", "--schemas", str(folder), "--json")
    assert code == 1
    assert "lang is not written and has no default" in json.dumps(answer)
    with pytest.raises(IncompatibleSchema):
        run("check", "--schemas", str(folder), "--freeze")
    assert not (folder / "history" / "Note" / "2.avsc").exists()


def test_a_broken_or_doubled_file_is_named(folder: Path) -> None:
    (folder / "Broken.avsc").write_text("{")
    with pytest.raises(ConfigurationError, match=r"Broken\.avsc"):
        run("check", "--schemas", str(folder))
    shutil.copy(folder / "Note.avsc", folder / "Broken.avsc")
    with pytest.raises(ConfigurationError, match=r"agent\.run\.Note.*already defined"):
        run("list", "--schemas", str(folder))


def test_list_shows_the_contracts() -> None:
    code, answer = run("list", "--json")
    assert code == 0
    assert len(answer["schemas"]) == 20
    assert "agent.run.ModelCall" in run("list")[1]


def test_register_wants_a_known_record() -> None:
    with pytest.raises(ConfigurationError, match="Nope"):
        run("register", "t", "--record", "Nope", "--registry", "mock://x")
