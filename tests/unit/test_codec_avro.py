"""The Avro codec: ids per topic, what is undecodable, versions of a schema, fingerprints, encode errors."""

from __future__ import annotations

import contextlib
import json
from io import BytesIO
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer

from pipeline.codec import (
    AvroCodec,
    AvroPolicy,
    SchemaCatalogue,
    SchemaNotFound,
    product_catalogue,
    subject_of,
)
from pipeline.codec.avro import NOT_FOUND_S, UNREADABLE_MAX
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.codec.schema import AvroSchema, parse
from pipeline.codec.scrub import scrub
from pipeline.codec.wire import SCHEMA_ID_HEADER, key_of_id
from pipeline.model.errors import EncodeError, SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, Message, RunEvent, ToolResult, UnknownEvent
from pipeline.model.views import Ledger

TOPIC = "agent.run.events"
NAME = "agent.run.ToolResult"
EVENT = ToolResult(
    event_id="e",
    run_id="r",
    sequence=1,
    occurred_at=1_700_000_000_000,
    agent="a",
    tenant="t",
    tool="search",
    call_id="c",
    status="OK",
    content="found",
)


class Registry(LocalRegistry):
    """The local registry, counting its calls and able to be away."""

    def __init__(self) -> None:
        super().__init__(MemorySchemaLog(), product_catalogue())
        self.calls = 0
        self.away = False

    def _catch_up(self) -> None:
        self.calls += 1
        if self.away:
            raise SchemaUnavailable("away")
        super()._catch_up()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def codec(registry: Registry) -> AvroCodec:
    codec = AvroCodec(registry)
    assert codec.prepare(TOPIC) == []
    return codec


def variant(change: Any, name: str = NAME) -> AvroSchema:
    """A version of a contract with its fields changed by `change(fields)`."""
    definition = json.loads(product_catalogue().present[name].text)
    change(definition["fields"])
    return parse(definition)


def written(registry: LocalRegistry, schema: AvroSchema, fields: dict[str, Any], topic: str = TOPIC) -> bytes:
    """Bytes as a foreign writer of that schema makes them, registered for the topic."""
    registry.set_compatibility(subject_of(topic, schema.name), "NONE")
    out = BytesIO()
    schemaless_writer(out, parse_schema(schema.node), fields)
    return key_of_id(registry.register(subject_of(topic, schema.name), schema)) + out.getvalue()


def test_a_prepared_topic_needs_no_registry_any_more(codec: AvroCodec, registry: Registry) -> None:
    registry.away = True
    before = registry.calls
    data = codec.encode(EVENT, topic=TOPIC)
    assert codec.decode(TOPIC, data) == EVENT
    assert codec.decode_dict(TOPIC, data) == (NAME, EVENT.model_dump())
    assert codec.fingerprint(TOPIC, data) == product_catalogue().present[NAME].fingerprint
    assert registry.calls == before


def test_an_unknown_id_waits_for_fetch_and_never_asks_by_itself(codec: AvroCodec, registry: Registry) -> None:
    data = codec.encode(EVENT, topic=TOPIC)
    cold = AvroCodec(registry)
    registry.away = True
    before = registry.calls
    with pytest.raises(SchemaUnavailable) as unknown:
        cold.decode(TOPIC, data)
    assert registry.calls == before
    assert unknown.value.schema_id == int.from_bytes(data[1:5], "big")
    with pytest.raises(SchemaUnavailable):
        cold.fetch(TOPIC, unknown.value.schema_id)
    with pytest.raises(SchemaUnavailable):  # an outage settles nothing
        cold.decode(TOPIC, data)
    registry.away = False
    cold.fetch(TOPIC, unknown.value.schema_id)
    assert cold.decode(TOPIC, data) == EVENT


def test_an_id_the_registry_lacks_becomes_undecodable(codec: AvroCodec) -> None:
    data = key_of_id(77) + b"whatever"
    with pytest.raises(SchemaUnavailable):
        codec.decode(TOPIC, data)
    codec.fetch(TOPIC, 77)
    with pytest.raises(UndecodableError, match="77"):
        codec.decode(TOPIC, data)
    assert codec.fingerprint(TOPIC, data) == ""


def test_what_the_registry_lacks_is_asked_for_again_after_a_while(
    codec: AvroCodec, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that lagged behind once made all records of the id dead letters until the worker was started anew."""
    now_s = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    order = parse({"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "n", "type": "int"}]})
    schema_id = registry.register("elsewhere-value", order)
    data = key_of_id(schema_id) + b"\x0e"
    codec.fetch("orders", schema_id)
    assert registry.register("orders-value", order) == schema_id
    with pytest.raises(UndecodableError):
        codec.decode("orders", data)
    now_s += NOT_FOUND_S
    with pytest.raises(SchemaUnavailable) as again:
        codec.decode("orders", data)
    assert again.value.schema_id == schema_id
    with pytest.raises(SchemaUnavailable):
        codec.decode_many("orders", [data], True)
    codec.fetch("orders", schema_id)
    assert codec.decode_dict("orders", data) == ("shop.Order", {"n": 7})
    assert not codec._topics["orders"].unreadable


def test_an_unsafe_schema_is_refused_for_good(
    codec: AvroCodec, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "schema_by_id", lambda _id: '{"type": "array", "items": "null"}')
    codec.fetch(TOPIC, 78)
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    with pytest.raises(UndecodableError):
        codec.decode(TOPIC, key_of_id(78) + b"x")


def test_an_id_of_another_topic_is_foreign(codec: AvroCodec) -> None:
    data = codec.encode(EVENT, topic=TOPIC)
    codec.fetch("payments", int.from_bytes(data[1:5], "big"))
    with pytest.raises(UndecodableError, match="not for topic payments"):
        codec.decode("payments", data)
    assert codec.decode(TOPIC, data) == EVENT


def test_others_topics_with_one_type_are_read(codec: AvroCodec, registry: Registry) -> None:
    order = parse({"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "n", "type": "int"}]})
    schema_id = registry.register("orders-value", order)
    codec.fetch("orders", schema_id)
    data = key_of_id(schema_id) + b"\x0e"
    assert codec.decode_dict("orders", data) == ("shop.Order", {"n": 7})
    assert codec.decode("orders", data) == UnknownEvent("shop.Order", {"n": 7})


def test_ids_found_foreign_do_not_fill_the_memory(codec: AvroCodec) -> None:
    for schema_id in range(1, UNREADABLE_MAX + 50):
        codec.fetch("flood", schema_id)
    assert len(codec._topics["flood"].readers) == UNREADABLE_MAX
    with pytest.raises(SchemaUnavailable):
        codec.decode("flood", key_of_id(1) + b"x")


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"\x00\xff\xff\xff\xffwhatever", None),
        (b"\x00\x80\x00\x00\x00whatever", None),
        (b"whatever", [(SCHEMA_ID_HEADER, b"\x00\xff\xff\xff\xff")]),
        (b"whatever", [(SCHEMA_ID_HEADER, b"\x01" + bytes(16))]),
        (b"whatever", [(SCHEMA_ID_HEADER, b"\x01" + bytes(15) + b"\x07")]),
    ],
)
def test_whatever_stands_for_an_id_is_found_out_once(
    codec: AvroCodec, data: bytes, headers: list[tuple[str, bytes | None]] | None
) -> None:
    """An id that was taken for a GUID, or the other way round, was looked up under another name: fetched, and not known, without end."""
    with contextlib.suppress(UndecodableError):
        try:
            codec.decode(TOPIC, data, headers)
        except SchemaUnavailable as error:
            codec.fetch(TOPIC, error.schema_id or 0)
    with pytest.raises(UndecodableError):
        codec.decode(TOPIC, data, headers)


@pytest.mark.parametrize("data", [None, b"", b"\x00\x00", b"{}", b"\x02\x00\x00\x00\x01body"])
def test_what_has_no_frame_is_undecodable(codec: AvroCodec, data: bytes | None) -> None:
    with pytest.raises(UndecodableError):
        codec.decode(TOPIC, data)
    with pytest.raises(UndecodableError):
        codec.decode_dict(TOPIC, data)


def test_trailing_and_missing_bytes_are_undecodable(codec: AvroCodec) -> None:
    data = codec.encode(EVENT, topic=TOPIC)
    with pytest.raises(UndecodableError, match=f"ends at byte {len(data)} of {len(data) + 1}"):
        codec.decode(TOPIC, data + b"\x00")
    for length in range(5, len(data)):
        with pytest.raises(UndecodableError):
            codec.decode(TOPIC, data[:length])


def test_the_size_is_bounded_before_anything_is_read(registry: Registry) -> None:
    small = AvroCodec(registry, policy=AvroPolicy(max_value_bytes=40))
    small.prepare(TOPIC)
    data = small.encode(EVENT, topic=TOPIC)
    assert len(data) > 40
    with pytest.raises(UndecodableError, match="max_value_bytes=40"):
        small.decode(TOPIC, data)


def test_older_and_newer_writers_are_read_as_this_build_knows_them(codec: AvroCodec, registry: Registry) -> None:
    newer = variant(lambda fields: fields.insert(3, {"name": "region", "type": ["null", "string"], "default": None}))
    older = variant(lambda fields: fields.remove(next(f for f in fields if f["name"] == "duration_ms")))
    more = written(registry, newer, EVENT.model_dump() | {"region": "eu"})
    less = written(registry, older, EVENT.model_dump(exclude={"duration_ms"}))
    for data in (more, less):
        codec.fetch(TOPIC, int.from_bytes(data[1:5], "big"))
        assert codec.decode(TOPIC, data) == EVENT
        assert codec.decode_dict(TOPIC, data) == (NAME, EVENT.model_dump())
        with pytest.raises(UndecodableError):
            codec.decode(TOPIC, data + b"\x00")
        with pytest.raises(UndecodableError):
            codec.decode(TOPIC, data[:-1])


def test_a_symbol_of_a_newer_writer_becomes_unknown(codec: AvroCodec, registry: Registry) -> None:
    def add_symbol(fields: list[Any]) -> None:
        next(f for f in fields if f["name"] == "status")["type"]["symbols"].append("DEFERRED")

    data = written(registry, variant(add_symbol), EVENT.model_dump() | {"status": "DEFERRED"})
    codec.fetch(TOPIC, int.from_bytes(data[1:5], "big"))
    event = codec.decode(TOPIC, data)
    assert isinstance(event, ToolResult)
    assert event.status == "UNKNOWN"


def test_a_writer_that_does_not_fit_the_contract_is_undecodable(codec: AvroCodec, registry: Registry) -> None:
    broken = variant(lambda fields: fields.remove(next(f for f in fields if f["name"] == "tool")))
    data = written(registry, broken, EVENT.model_dump(exclude={"tool"}))
    codec.fetch(TOPIC, int.from_bytes(data[1:5], "big"))
    with pytest.raises(UndecodableError, match="contract"):
        codec.decode(TOPIC, data)


def test_a_dangerous_writers_schema_makes_its_id_undecodable(codec: AvroCodec) -> None:
    class Hostile(Registry):
        def schema_by_id(self, schema_id: int) -> str:
            bomb = {"type": "array", "items": "null"}
            return json.dumps({"type": "record", "name": "B", "fields": [{"name": "x", "type": bomb}]})

        def subjects_of(self, schema_id: int) -> list[str]:
            return [f"{TOPIC}-value"]

    hostile = AvroCodec(Hostile())
    hostile.fetch(TOPIC, 5)
    with pytest.raises(UndecodableError, match="items take no bytes"):
        hostile.decode(TOPIC, key_of_id(5) + b"\xfe\xff\xff\xff\x0f\x00")


def test_a_dead_letter_decodes_without_the_registry(codec: AvroCodec, registry: Registry) -> None:
    data = codec.encode(EVENT, topic=TOPIC)
    fingerprint = codec.fingerprint(TOPIC, data)

    class Nowhere(Registry):
        def _catch_up(self) -> None:
            raise AssertionError("asked the registry")

    alone = AvroCodec(Nowhere())
    assert alone.decode_by_fingerprint(fingerprint, data) == (NAME, EVENT.model_dump())
    with pytest.raises(UndecodableError, match="0123456789abcdef"):
        alone.decode_by_fingerprint("0123456789abcdef", data)
    older = variant(lambda fields: fields.remove(next(f for f in fields if f["name"] == "duration_ms")))
    old_data = written(registry, older, EVENT.model_dump(exclude={"duration_ms"}))
    with pytest.raises(UndecodableError):
        alone.decode_by_fingerprint(older.fingerprint, old_data)
    past = SchemaCatalogue(product_catalogue().present, {NAME: (older,)})
    for reader, schema_text in ((AvroCodec(Nowhere(), past), None), (alone, older.text)):
        name, fields = reader.decode_by_fingerprint(older.fingerprint, old_data, writer_schema=schema_text)
        assert (name, fields) == (NAME, EVENT.model_dump())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["untagged met first", "tagged met first"])
def test_schemas_that_differ_in_tags_alone_are_each_their_own(registry: Registry, order: tuple[int, int]) -> None:
    """They have one fingerprint: what v2 marks as personal was shown when v1's id had been met before."""
    email = {"name": "email", "type": "string"}
    versions = [
        parse({"type": "record", "name": "Customer", "namespace": "crm", "fields": [member]})
        for member in (email, email | {"pii": True})
    ]
    values = [written(registry, version, {"email": "ann@example.org"}, "customers") for version in versions]
    codec = AvroCodec(registry)
    for n in order:
        codec.fetch("customers", int.from_bytes(values[n][1:5], "big"))
    for version, value in zip(versions, values, strict=True):
        assert codec.writer_schema("customers", value) == version
        assert codec.schema_of("customers", value) == version
    _, fields = codec.decode_dict("customers", values[1])
    assert scrub(fields, codec.schema_of("customers", values[1])) == {"email": "[pii]"}


def test_encode_errors_name_the_field_and_keep_values_out(codec: AvroCodec) -> None:
    good = EVENT.model_dump()
    cases: list[tuple[dict[str, Any], str]] = [
        (good | {"sequence": "secret-1"}, "sequence is a str, which does not fit long"),
        (good | {"sequence": 2**63}, "sequence is 9223372036854775808"),
        (good | {"status": "SECRET"}, "status is a str, which does not fit one of UNKNOWN, OK"),
        (good | {"agent": None}, "agent is None, which does not fit string"),
        (good | {"content": b"secret"}, "content is a bytes, which does not fit null or string"),
        (good | {"content": "\ud800secret"}, "content is a str"),
        ({k: v for k, v in good.items() if k != "tool"}, "lacks field tool"),
        (good | {"duraton_ms": 1}, "has no field duraton_ms"),
    ]
    for fields, words in cases:
        with pytest.raises(EncodeError, match=words) as caught:
            codec.encode(fields, topic=TOPIC, record_name=NAME)
        assert "secret" not in str(caught.value).lower().replace("tool", "")


def test_a_mapping_takes_defaults(codec: AvroCodec) -> None:
    short = EVENT.model_dump(exclude_defaults=True)
    assert "error" not in short
    assert codec.encode(short, topic=TOPIC, record_name=NAME) == codec.encode(EVENT, topic=TOPIC)


def test_what_is_not_registered_is_not_sent(registry: Registry) -> None:
    class Strict(Registry):
        def lookup(self, subject: str, schema: AvroSchema) -> int:
            if schema.name == NAME:
                raise SchemaNotFound("no")
            return super().lookup(subject, schema)

    codec = AvroCodec(Strict())
    with pytest.raises(EncodeError, match=r"not registered for topic agent\.run\.events"):
        codec.encode(EVENT, topic=TOPIC)
    assert codec.prepare(TOPIC) == [NAME]
    with pytest.raises(EncodeError, match="pipeline schemas register"):
        codec.encode(EVENT, topic=TOPIC)
    message = Message(**EVENT.model_dump(include=set(RunEvent.model_fields)), role="USER", content="x")
    assert codec.decode(TOPIC, codec.encode(message, topic=TOPIC)) == message
    with pytest.raises(EncodeError, match="record_name"):
        codec.encode({}, topic=TOPIC)


def test_prepare_of_a_record_without_contract_names_it(codec: AvroCodec) -> None:
    with pytest.raises(EncodeError, match=r"agent\.run\.Nonsense has no contract"):
        codec.prepare(TOPIC, ["agent.run.Nonsense"])


def test_other_values_have_topics_too(codec: AvroCodec) -> None:
    entry = Ledger(
        group="g", event_id="e", origin_topic=TOPIC, origin_partition=3, origin_offset=2**40, attempt=1,
        action="done", worker="w", at_ms=5,
    )  # fmt: skip
    assert codec.prepare("demo.ledger", ["agent.run.Ledger"]) == []
    assert codec.decode("demo.ledger", codec.encode(entry, topic="demo.ledger")) == entry


def test_fingerprints_tell_the_contracts_apart() -> None:
    prints = {schema.fingerprint for schema in product_catalogue().present.values()}
    assert len(prints) == len(product_catalogue().present)
    assert all(len(each) == 16 for each in prints)
    # The specification's own examples, in the byte order of its wire form.
    assert parse('"null"').fingerprint == "8a8f25cce724dd63"
    assert set(EVENT_TYPES) < set(product_catalogue().present)
