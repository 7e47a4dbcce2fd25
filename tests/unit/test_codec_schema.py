"""Schemas that could take the process down are refused when first seen, cheaply."""

from __future__ import annotations

import json
import time
from array import array
from typing import Any

import pytest

from pipeline.codec.generated import function
from pipeline.codec.reader import READ_ERRORS, compile_reader
from pipeline.codec.schema import NODES_MAX, SchemaRefused, parse
from pipeline.codec.writer import WRITE_ERRORS, compile_row_writer, compile_writer


def record(name: str, *types: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": f"f{i}", "type": t} for i, t in enumerate(types)],
    }


EMPTY = record("Empty")
RECURSIVE: list[Any] = [
    record("Node", ["null", "Node"]),
    record("Tree", {"type": "array", "items": "Tree"}),
    record("A", record("B", ["null", "A"])),
    record("M", {"type": "map", "values": "M"}),
]
NO_BYTES: list[Any] = [
    {"type": "array", "items": "null"},
    record("R", {"type": "array", "items": EMPTY}),
    record("R", {"type": "array", "items": record("Nulls", "null", "null")}),
    record("R", {"type": "array", "items": record("Outer", EMPTY, "Empty")}),
    record("R", {"type": "array", "items": {"type": "fixed", "name": "Zero", "size": 0}}),
    record("R", ["null", {"type": "map", "values": {"type": "array", "items": "null"}}]),
]


@pytest.mark.parametrize("schema", RECURSIVE, ids=str)
def test_recursive_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(SchemaRefused, match=r"contains itself"):
        parse(schema)


@pytest.mark.parametrize("schema", NO_BYTES, ids=str)
def test_arrays_of_nothing_are_refused(schema: Any) -> None:
    with pytest.raises(SchemaRefused, match="no bytes"):
        parse(schema)


def test_the_field_that_is_refused_is_named() -> None:
    inner = record("Inner", "int", {"type": "map", "values": {"type": "array", "items": "null"}})
    with pytest.raises(SchemaRefused, match=r"Field f1\.f1 of the schema has an array whose items take no bytes"):
        parse(record("Outer", "string", inner))
    with pytest.raises(SchemaRefused, match=r"Field f0\.f1 of the schema is of type A, which contains itself"):
        parse(record("A", record("B", "int", ["null", "A"])))
    deep: Any = "int"
    for level in range(40):
        deep = record(f"L{level}", deep)
    with pytest.raises(SchemaRefused, match=r"(Field f0\.f0.* of the schema|The schema) nests deeper than 32 types"):
        parse(deep)


def test_a_schema_of_doublings_is_refused_at_once() -> None:
    node: Any = record("L0", "int")
    for level in range(1, 28):
        node = record(f"L{level}", node, f"L{level - 1}")
    started = time.process_time()
    with pytest.raises(SchemaRefused, match=rf"more than {NODES_MAX}"):
        parse(node)
    assert time.process_time() - started < 5


def test_deep_schemas_are_refused_whatever_the_text() -> None:
    node: Any = "int"
    for _ in range(200):
        node = {"type": "array", "items": node}
    with pytest.raises(SchemaRefused):
        parse(node)
    with pytest.raises(SchemaRefused):
        parse('{"type":' * 100_000)
    with pytest.raises(SchemaRefused):
        parse('{"type":' * 50_000 + '"int"' + "}" * 50_000)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"type": "record"}', '"nonsense"', '{"type": 5}', "null", "12"])
def test_what_is_not_avro_is_refused(text: str) -> None:
    if text == "null":
        assert parse(text).name == "null"
        return
    with pytest.raises(SchemaRefused):
        parse(text)


def test_a_type_used_twice_is_not_recursion() -> None:
    schema = parse(record("R", {"type": "enum", "name": "E", "symbols": ["A", "B"]}, "E", ["null", "E"]))
    assert compile_reader(schema)(b"\x00\x02\x02\x00", 0) == {"f0": "A", "f1": "B", "f2": "A"}


def test_names_never_become_code() -> None:
    name = "__import__"
    schema = parse(record("R", {"type": "enum", "name": name, "symbols": ["exec"]}))
    assert compile_reader(schema)(b"\x00", 0) == {"f0": "exec"}
    hostile = {"type": "record", "name": "R", "fields": [{"name": "a'];import os#", "type": "int"}]}
    try:
        read = compile_reader(parse(hostile))
    except SchemaRefused:
        return
    assert read(b"\x02", 0) == {"a'];import os#": 1}


def test_logical_types_are_read_as_what_lies_beneath() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}
    when = ["null", {"type": "long", "logicalType": "timestamp-micros"}]
    assert compile_reader(parse(record("R", decimal, when)))(b"\x02\x07\x02\x0a", 0) == {
        "f0": b"\x07",
        "f1": 5,
    }
    default = record("R", "int")
    default["fields"][0] |= {"default": 3}
    assert parse(default).node["fields"][0]["default"] == 3


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (
            {"type": "array", "items": "int"},
            b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00",
        ),  # 2**63 - 1 items
        ({"type": "array", "items": "int"}, b"\x80\x80\x80\x80\x10\x02\x00"),
        ({"type": "array", "items": "int"}, b"\x01\x00"),
        ({"type": "map", "values": "int"}, b"\x02\x01"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 2}}, b"\x0aabcde"),
        ("string", b"\x01"),  # a negative length
        ("string", b"\xfe\xff\xff\xff\x0fabc"),
        ("string", b"\x04\xff\xff"),
        ("bytes", b"\x0aabc"),
        ("long", b"\xff" * 11),
        ("long", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
        ("int", b"\x80\x80\x80\x80\x10"),
        ("boolean", b"\x02"),
        ("double", b"\x00" * 7),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x01"),
        ({"type": "fixed", "name": "F", "size": 4}, b"\x00" * 3),
        (["null", "int"], b"\x04"),
        (["null", "int"], b"\x01"),
    ],
    ids=str,
)
def test_hostile_bytes_are_an_error_and_no_work(schema: Any, data: bytes) -> None:
    read = compile_reader(parse(schema))
    started = time.process_time()
    with pytest.raises(READ_ERRORS):
        read(data, 0)
    assert time.process_time() - started < 1


def test_a_count_beyond_the_data_is_refused_before_the_first_item() -> None:
    for schema in ({"type": "array", "items": "int"}, {"type": "map", "values": "int"}):
        with pytest.raises(ValueError, match="a block of 5 items does not fit the 4 bytes left"):
            compile_reader(parse(schema))(b"\x0a\x02\x02\x02\x02", 0)


def test_fixed_values_stop_at_the_end_of_the_data() -> None:
    wide = record("Wide", *({"type": "fixed", "name": f"F{i}", "size": 50_000} for i in range(500)))
    read = compile_reader(parse({"type": "array", "items": wide}))
    started = time.process_time()
    with pytest.raises(ValueError, match="cut short"):
        read(b"\x80\x89\x7a" + bytes(1_000_000), 0)  # claims 999,488 items in a megabyte
    assert time.process_time() - started < 2


def test_block_counts_may_be_negative_with_a_size() -> None:
    assert compile_reader(parse({"type": "array", "items": "int"}))(b"\x03\x04\x02\x04\x00", 0) == [1, 2]
    wide = json.loads('{"type": "array", "items": "string"}')
    assert compile_reader(parse(wide))(b"\x02\x02a\x02\x02b\x00", 0) == ["a", "b"]


BUFFERS = [
    (bytearray(b"abcd"), b"abcd"),
    (memoryview(b"abcd"), b"abcd"),
    (memoryview(b"a-b-c-d-")[::2], b"abcd"),
    (memoryview(array("i", [1])), array("i", [1]).tobytes()),
    (memoryview(array("i", [1, 2, 3, 4])), array("i", [1, 2, 3, 4]).tobytes()),
    (array("b", b"abcd"), None),
    (array("f", [1]), None),
    (array("i", [1, 2, 3, 4]), None),
    ("abcd", None),
    ([1, 2, 3, 4], None),
]


@pytest.mark.parametrize(("given", "meant"), BUFFERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("kind", ["bytes", ["null", "bytes"], {"type": "fixed", "name": "F", "size": 4}], ids=str)
def test_a_buffer_is_written_whole_or_not_at_all(kind: Any, given: Any, meant: bytes | None) -> None:
    """Its length was told in items, of an embedding in floats: nobody could read the value, nor what came after it."""
    schema = parse(record("R", kind, "string", {"type": "array", "items": kind if isinstance(kind, str) else "bytes"}))
    fields = {"f0": given, "f1": "tail", "f2": [given]}
    for write, value in ((compile_writer(schema), fields), (compile_row_writer(schema), tuple(fields.values()))):
        if meant is None or (isinstance(kind, dict) and len(meant) != 4):
            with pytest.raises(WRITE_ERRORS):
                write(value, b"")  # type: ignore[arg-type]
        else:
            assert compile_reader(schema)(write(value, b""), 0) == {"f0": meant, "f1": "tail", "f2": [meant]}  # type: ignore[arg-type]


def test_unions_of_records_say_which() -> None:
    union = parse(record("R", [record("A", "int"), record("B", "int")]))
    assert compile_reader(union)(b"\x02\x08", 0) == {"f0": ("B", {"f0": 4})}
    single = parse(record("R", ["null", record("A", "int")]))
    assert compile_reader(single)(b"\x02\x08", 0) == {"f0": {"f0": 4}}


def test_functions_of_one_text_keep_their_own_names() -> None:
    """Two enums give the same lines: code may be shared, what it looks up may not."""
    forth, back = (
        parse(record("R", {"type": "enum", "name": "E", "symbols": symbols})) for symbols in (["A", "B"], ["B", "A"])
    )
    writers, readers = (
        [compile_writer(each) for each in (forth, back)],
        [compile_reader(each) for each in (forth, back)],
    )
    assert [write({"f0": "A"}, b"") for write in writers] == [b"\x00", b"\x02"]
    assert [read(b"\x00", 0) for read in readers] == [{"f0": "A"}, {"f0": "B"}]


def test_one_text_is_compiled_once() -> None:
    first, second = (function("f", ["def f(): return n"], {"n": n}, "<test of one text>") for n in (1, 2))
    assert (first(), second()) == (1, 2)
    assert first.__code__ is second.__code__
