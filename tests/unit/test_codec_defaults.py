"""Fields that a writer did not know: each value gets the contract's default as Python has it, and one of its own."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from fastavro import schemaless_writer

from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.reader import compile_reader
from pipeline.codec.reading import SchemaReader
from pipeline.codec.registry import subject_of
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.codec.schema import AvroSchema, Node, SchemaRefused, parse
from pipeline.codec.wire import key_of_id
from pipeline.codec.writer import compile_writer
from pipeline.model.events import RunStarted

TOPIC = "agent.run.events"


def record(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Node, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


INNER = record(
    "x.Inner",
    field("raw", "bytes", default="\u00ff"),
    field("count", "long", default=3),
    field("labels", {"type": "map", "values": "string"}, default={"a": "b"}),
)
DEFAULTS: list[tuple[Node, Any, Any]] = [
    ("bytes", "\u00ff", b"\xff"),
    ({"type": "fixed", "name": "x.F", "size": 2}, "\u0000\u00ff", b"\x00\xff"),
    (["bytes", "null"], "\u00ff", b"\xff"),
    (["null", "string"], None, None),
    ("double", 1, 1.0),
    ("long", 7, 7),
    ({"type": "enum", "name": "x.E", "symbols": ["A", "B"]}, "B", "B"),
    ({"type": "array", "items": "bytes"}, ["\u00ff"], [b"\xff"]),
    ({"type": "map", "values": ["null", "long"]}, {"z": 1}, {"z": 1}),
    (INNER, {}, {"raw": b"\xff", "count": 3, "labels": {"a": "b"}}),
    (INNER, {"count": 4, "raw": "\u0001"}, {"raw": b"\x01", "count": 4, "labels": {"a": "b"}}),
    ({"type": "array", "items": INNER}, [{}], [{"raw": b"\xff", "count": 3, "labels": {"a": "b"}}]),
    ([record("x.A", field("a", "int", default=1)), record("x.B", field("b", "int"))], {}, ("x.A", {"a": 1})),
]


def written(schema: AvroSchema, value: Any) -> bytes:
    out = BytesIO()
    schemaless_writer(out, schema.node, value)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "default", "meant"), DEFAULTS, ids=lambda each: str(each)[:40])
def test_a_default_is_what_reading_it_gives(kind: Node, default: Any, meant: Any) -> None:
    """fastavro gives it as JSON has it: bytes as a text, a record without the fields that it leaves out."""
    contract = parse(record("x.R", field("a", "int"), field("b", kind, default=default)))
    older = parse(record("x.R", field("a", "int")))
    found = SchemaReader.make(older, contract, None).fields(written(older, {"a": 1}), 0)
    assert found == {"a": 1, "b": meant}
    assert type(found["b"]) is type(meant)
    assert compile_reader(contract)(compile_writer(contract)({"a": 1}, b""), 0) == found, (
        "a missing field is written so, too"
    )


def test_records_inside_get_their_defaults_too() -> None:
    older_inner = record("x.Inner", field("count", "long"))
    older = parse(record("x.R", field("one", older_inner), field("more", {"type": "array", "items": "x.Inner"})))
    contract = parse(record("x.R", field("one", INNER), field("more", {"type": "array", "items": "x.Inner"})))
    read = SchemaReader.make(older, contract, None)
    body = written(older, {"one": {"count": 5}, "more": [{"count": 6}, {"count": 7}]})
    found = read.fields(body, 0)
    rest = {"raw": b"\xff", "labels": {"a": "b"}}
    assert found == {"one": {"count": 5, **rest}, "more": [{"count": 6, **rest}, {"count": 7, **rest}]}
    found["one"]["labels"]["poison"] = found["more"][0]["labels"]["poison"] = "x"
    assert found["more"][1]["labels"] == {"a": "b"}
    assert read.fields(body, 0)["one"]["labels"] == {"a": "b"}


def test_what_a_handler_adds_to_a_default_stays_in_its_event() -> None:
    """The labels were the contract's own object: every later event of an older producer had them, and the contract."""
    contract = product_catalogue().present["agent.run.RunStarted"]
    fields = [member for member in contract.definition["fields"] if member["name"] != "labels"]
    older = parse(contract.definition | {"fields": fields})
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    key = key_of_id(registry.register(subject_of(TOPIC, older.name), older))
    event = RunStarted(event_id="e", run_id="r", sequence=0, occurred_at=1, agent="a", tenant="t")
    data = key + written(older, event.model_dump(exclude={"labels"}))
    codec = AvroCodec(registry)
    codec.fetch(TOPIC, int.from_bytes(key[1:], "big"))
    first = codec.decode(TOPIC, data)
    assert isinstance(first, RunStarted)
    first.labels["seen"] = "by me"
    assert codec.decode(TOPIC, data) == event
    assert {"labels": {}}.items() <= {
        member["name"]: member.get("default") for member in contract.node["fields"]
    }.items()


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        ("bytes", "\u0100"),
        (record("x.Needs", field("k", "long")), {}),
        ({"type": "array", "items": "bytes"}, [5]),
    ],
    ids=["beyond a byte", "a field is missing", "items of another type"],
)
def test_a_default_that_is_none_is_told_with_its_field(kind: Node, default: Any) -> None:
    contract = parse(record("x.R", field("a", "int"), field("b", kind, default=default)))
    older = parse(record("x.R", field("a", "int")))
    with pytest.raises(SchemaRefused, match=r"x\.R\.b"):
        SchemaReader.make(older, contract, None)
    with pytest.raises(SchemaRefused, match=r"x\.R\.b"):
        compile_writer(contract)
