"""Random schemas, values and bytes: our generated readers and writers against fastavro, and against anything
at all.
"""

from __future__ import annotations

import math
from contextlib import suppress
from io import BytesIO
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.compatibility import problems
from pipeline.codec.reader import READ_ERRORS, compile_reader
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.codec.schema import AvroSchema, Node, SchemaRefused, parse
from pipeline.codec.writer import compile_row_writer, compile_writer, fields_of
from pipeline.model.errors import SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, Message, TypedValue

TOPIC = "agent.run.events"
CODEC = AvroCodec(LocalRegistry(MemorySchemaLog(), product_catalogue()))
CODEC.prepare(TOPIC)
LONG_MAX = 2**63 - 1
PRIMITIVES = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
SYMBOLS = ["A", "B", "C", "D"]
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def types(depth: int, unions: bool) -> st.SearchStrategy[Any]:
    """Type nodes with placeholders for names (`named` makes them unique)."""
    leaf: st.SearchStrategy[Any] = st.one_of(
        st.sampled_from(PRIMITIVES),
        st.builds(
            lambda s: {"type": "enum", "symbols": s},
            st.lists(st.sampled_from(SYMBOLS), min_size=1, unique=True),
        ),
        st.builds(lambda n: {"type": "fixed", "size": n}, st.integers(1, 20)),
    )
    if depth == 0:
        return leaf
    inner = types(depth - 1, unions)
    choices = [
        leaf,
        st.builds(lambda t: ["null", t], inner.filter(lambda t: t != "null" and not isinstance(t, list))),
        st.builds(lambda t: {"type": "array", "items": t}, inner.filter(lambda t: t != "null")),
        st.builds(lambda t: {"type": "map", "values": t}, inner),
        st.builds(lambda ts: {"type": "record", "fields": ts}, st.lists(inner, max_size=4)),
    ]
    if unions:
        branch = st.sampled_from(["null", "boolean", "long", "double", "bytes", "string"])
        choices.append(st.lists(branch, min_size=1, max_size=4, unique=True))
    return st.one_of(choices)


def named(node: Any, counter: list[int]) -> Any:
    """The node as Avro wants it: named types named, fields numbered."""
    if isinstance(node, list):
        return [named(branch, counter) for branch in node]
    if not isinstance(node, dict):
        return node
    out = dict(node)
    for key in ("items", "values"):
        if key in out:
            out[key] = named(out[key], counter)
    if out["type"] in ("record", "enum", "fixed"):
        counter[0] += 1
        out["name"] = f"N{counter[0]}"
    if "fields" in out:
        members = [named(member, counter) for member in out["fields"]]
        out["fields"] = [{"name": f"f{i}", "type": member} for i, member in enumerate(members)]
    return out


def schemas(unions: bool) -> st.SearchStrategy[AvroSchema]:
    def build(members: list[Any]) -> AvroSchema:
        try:
            return parse(named({"type": "record", "fields": members}, [0]))
        except SchemaRefused as error:
            assume("no bytes" not in str(error))  # an array of empty records is refused, and rightly
            raise

    return st.builds(build, st.lists(types(2, unions), min_size=1, max_size=6))


def values(node: Any) -> st.SearchStrategy[Any]:
    if isinstance(node, list):
        return st.one_of([values(branch) for branch in node])
    kind = node["type"] if isinstance(node, dict) else node
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": st.integers(-LONG_MAX - 1, LONG_MAX),
        "float": st.floats(width=32, allow_nan=False),
        "double": st.floats(allow_nan=False),
        "bytes": st.binary(max_size=100),
        "string": text,
    }
    if kind in simple:
        return simple[kind]
    if kind == "enum":
        return st.sampled_from(node["symbols"])
    if kind == "fixed":
        return st.binary(min_size=node["size"], max_size=node["size"])
    if kind == "array":
        return st.lists(values(node["items"]), max_size=5)
    if kind == "map":
        return st.dictionaries(text, values(node["values"]), max_size=5)
    return st.fixed_dictionaries({member["name"]: values(member["type"]) for member in node["fields"]})


def by_fastavro(schema: AvroSchema, value: Any) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, schema.node, value)
    return out.getvalue()


@SLOW
@given(st.data())
def test_any_schema_is_read_as_fastavro_reads_it(data: st.DataObject) -> None:
    schema = data.draw(schemas(unions=True))
    raw = by_fastavro(schema, data.draw(values(schema.node)))
    start = data.draw(st.integers(0, 5))
    expected = fastavro.schemaless_reader(
        BytesIO(raw), schema.node, None, return_record_name=True, return_record_name_override=True
    )
    assert compile_reader(schema)(bytes(start) + raw, start) == expected


@SLOW
@given(st.data())
def test_any_schema_is_written_as_fastavro_writes_it(data: st.DataObject) -> None:
    schema = data.draw(schemas(unions=False))
    value = data.draw(values(schema.node))
    ours = compile_writer(schema)(value, b"prefix")
    assert ours[6:] == by_fastavro(schema, value)
    assert compile_reader(schema)(ours, 6) == value
    row = row_of(schema, schema.node, value)
    assert compile_row_writer(schema)(row, b"prefix") == ours
    assert fields_of(schema, row) == value


def row_of(schema: AvroSchema, node: Node, value: Any) -> Any:
    """The value with tuples in the place of records."""
    if isinstance(node, list):
        return None if value is None else row_of(schema, node[1], value)
    if isinstance(node, str):
        return row_of(schema, schema.named[node], value) if node in schema.named else value
    kind = node["type"]
    if kind in ("record", "error"):
        return tuple(row_of(schema, member["type"], value[member["name"]]) for member in node["fields"])
    if kind == "array":
        return [row_of(schema, node["items"], each) for each in value]
    if kind == "map":
        return {name: row_of(schema, node["values"], each) for name, each in value.items()}
    return value


@SLOW
@given(st.data())
def test_any_bytes_are_a_value_or_an_error(data: st.DataObject) -> None:
    schema = data.draw(schemas(unions=True))
    raw = bytearray(by_fastavro(schema, data.draw(values(schema.node))))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw)))
        raw[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=12))
    try:
        value = compile_reader(schema)(bytes(raw), 0)
    except READ_ERRORS:
        return
    # What it took is a value of the schema: fastavro finds the same in the same bytes.
    stream = BytesIO(bytes(raw))
    again = fastavro.schemaless_reader(
        stream, schema.node, None, return_record_name=True, return_record_name_override=True
    )
    assert stream.tell() == len(raw)
    assert repr(value) == repr(again)


def events() -> st.SearchStrategy[TypedValue]:
    def build(name: str) -> st.SearchStrategy[TypedValue]:
        kind = EVENT_TYPES[name]
        fields = {m["name"]: values(m["type"]) for m in product_catalogue().present[name].node["fields"]}
        for field_name, field in kind.model_fields.items():
            if any(getattr(item, "ge", None) == 0 for item in field.metadata):
                fields[field_name] = st.integers(0, LONG_MAX)
            if any(getattr(item, "min_length", None) for item in field.metadata):
                fields[field_name] = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
        return st.fixed_dictionaries(fields).map(lambda values: kind(**values))

    return st.sampled_from(sorted(EVENT_TYPES)).flatmap(build)


@SLOW
@given(events())
def test_random_events_come_back_as_they_were(event: TypedValue) -> None:
    data = CODEC.encode(event, topic=TOPIC)
    assert CODEC.decode(TOPIC, data) == event
    name, fields = CODEC.decode_dict(TOPIC, data)
    assert name == event.record_name
    assert fields == event.model_dump()
    assert CODEC.decode_by_fingerprint(CODEC.fingerprint(TOPIC, data), data) == (name, fields)


@SLOW
@given(events(), st.data())
def test_mutated_events_are_undecodable_or_an_event(event: TypedValue, data: st.DataObject) -> None:
    raw = bytearray(CODEC.encode(event, topic=TOPIC))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.binary(max_size=8))
    try:
        decoded = CODEC.decode(TOPIC, bytes(raw))
    except (UndecodableError, SchemaUnavailable):
        return
    assert isinstance(decoded, TypedValue)
    # Whatever was let through is a full value of its class, not a half-built one.
    again = type(decoded).model_construct(**decoded.model_dump())
    assert repr(again) == repr(decoded)


@SLOW
@given(st.binary(max_size=400))
def test_random_bytes_are_undecodable_or_unknown(raw: bytes) -> None:
    for data in (raw, CODEC.encode(SAMPLE, topic=TOPIC)[:5] + raw):
        with suppress(UndecodableError, SchemaUnavailable):
            CODEC.decode_dict(TOPIC, data)


SAMPLE = Message(event_id="e", run_id="r", sequence=0, occurred_at=0, agent="a", tenant="t", role="USER", content="")


# -- compatibility against real decoding
# ----------------------------------------------------------------------


def evolving() -> st.SearchStrategy[dict[str, Any]]:
    """A record with some of four fields; field i has one of a few types, sometimes with a default."""
    kinds: list[tuple[Any, Any]] = [
        ("int", 1),
        ("long", 2),
        ("double", 0.5),
        ("string", "s"),
        (["null", "int"], None),
        (["null", "string"], None),
        (["int", "string"], 4),
        ({"type": "array", "items": "int"}, []),
        ({"type": "array", "items": "long"}, []),
        ({"type": "map", "values": "string"}, {}),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "A"),
        ({"type": "enum", "name": "E", "symbols": ["A", "C"], "default": "A"}, "A"),
        ({"type": "fixed", "name": "F", "size": 2}, "ab"),
        ({"type": "fixed", "name": "F", "size": 3}, "abc"),
    ]

    def member(index: int) -> st.SearchStrategy[dict[str, Any]]:
        def build(kind: tuple[Any, Any], has_default: bool) -> dict[str, Any]:
            node = {**kind[0], "name": f"{kind[0]['name']}{index}"} if "name" in kind[0] else kind[0]
            return {"name": f"f{index}", "type": node} | ({"default": kind[1]} if has_default else {})

        return st.builds(build, st.sampled_from(kinds), st.booleans())

    chosen = st.lists(st.integers(0, 3), unique=True, max_size=4)
    return chosen.flatmap(lambda ids: st.tuples(*[member(i) for i in ids])).map(
        lambda members: {"type": "record", "name": "R", "fields": list(members)}
    )


def corners(node: Any) -> list[Any]:
    """Values that take every branch and symbol of a type at least once."""
    if isinstance(node, list):
        return [value for branch in node for value in corners(branch)]
    if isinstance(node, dict) and node["type"] == "enum":
        return list(node["symbols"])
    if isinstance(node, dict) and node["type"] == "record":
        per_field = {member["name"]: corners(member["type"]) for member in node["fields"]}
        longest = max(map(len, per_field.values()), default=1)
        return [{name: found[i % len(found)] for name, found in per_field.items()} for i in range(longest)]
    if isinstance(node, dict) and node["type"] == "array":
        return [[value] for value in corners(node["items"])]
    if isinstance(node, dict) and node["type"] == "map":
        return [{"k": value} for value in corners(node["values"])]
    if isinstance(node, dict) and node["type"] == "fixed":
        return [b"z" * node["size"]]
    simple: dict[str, list[Any]] = {
        "null": [None],
        "int": [7],
        "long": [2**40],
        "double": [1.5],
        "string": ["text"],
    }
    return simple[node]


def readable(reader: AvroSchema, writer: AvroSchema) -> bool:
    for value in corners(writer.node):
        try:
            fastavro.schemaless_reader(BytesIO(by_fastavro(writer, value)), writer.node, reader.node)
        except (SchemaResolutionError, KeyError, TypeError, ValueError):
            return False
    return True


@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(evolving(), evolving())
def test_the_compatibility_verdict_is_what_decoding_does(old: dict[str, Any], new: dict[str, Any]) -> None:
    reader, writer = parse(new), parse(old)
    assert (problems(reader, writer) == []) == readable(reader, writer)


def test_nan_and_infinity_survive() -> None:
    schema = parse({"type": "record", "name": "R", "fields": [{"name": "x", "type": "double"}]})
    for number in (math.inf, -math.inf, -0.0):
        assert compile_reader(schema)(compile_writer(schema)({"x": number}, b""), 0) == {"x": number}
    assert math.isnan(compile_reader(schema)(compile_writer(schema)({"x": math.nan}, b""), 0)["x"])
