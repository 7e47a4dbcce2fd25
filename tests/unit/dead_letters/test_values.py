"""Dead letters decode without a registry: by this build's schemas, else by what an index remembered while there was one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.synthetic_letters import DLQ, RESULTS, SOURCE, SyntheticCluster, registered, tool_call
from pipeline.codec import AvroCodec, product_catalogue, wire
from pipeline.codec.registry import subject_of
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.codec.schema import parse
from pipeline.codec.writer import compile_writer
from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.query import Query, Wanted
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.values import Values, remembered_as
from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import Headers
from pipeline.model.errors import SchemaUnavailable

FOREIGN = parse(
    json.dumps(
        {
            "type": "record", "name": "Refund", "namespace": "shop",
            "fields": [{"name": "tenant", "type": "string"}, {"name": "cents", "type": "long"}],
        }
    )
)  # fmt: skip


class Away:
    """A registry whose machine is gone; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def ask(*_given: Any) -> Any:
            self.asked += 1
            raise SchemaUnavailable("the registry does not answer")

        return ask


def letter(value: bytes, fingerprint: str = "", offset: int = 0) -> MemoryMessage:
    headers: Headers = [("pl.origin.topic", SOURCE.encode())]
    if fingerprint:
        headers.append(("pl.schema", fingerprint.encode()))
    return MemoryMessage((DLQ, 0, offset), b"k", value, headers, 1)


def foreign() -> tuple[AvroCodec, bytes]:
    """A codec whose registry knows a schema that this build has not, and a value of it."""
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    number = registry.register(subject_of(SOURCE, FOREIGN.name), FOREIGN)
    value = compile_writer(FOREIGN)({"tenant": "acme", "cents": 5}, b"\x00" + number.to_bytes(4, "big"))
    return AvroCodec(registry), value


def test_a_schema_of_this_build_needs_no_registry() -> None:
    codec, away = registered(), Away()
    value = tool_call(codec, "run-1", 1, "acme")
    shown = Values(AvroCodec(away)).show(letter(value, codec.fingerprint(SOURCE, value)))  # type: ignore[arg-type]
    assert (shown.type, shown.value["tenant"], shown.problem) == ("agent.run.ToolCall", "acme", "")  # type: ignore[index]
    assert shown.schema is not None
    assert shown.schema.name == "agent.run.ToolCall"
    assert away.asked == 0


def test_an_index_remembers_a_foreign_schema_for_the_day_the_registry_is_gone() -> None:
    codec, value = foreign()
    message = letter(value, FOREIGN.fingerprint)
    cluster = SyntheticCluster(lambda p, o: message, [1])
    store = Store(None)
    Ingest(store, cluster, DLQ, RESULTS, Values(codec)).run()  # type: ignore[arg-type]
    store.clear()  # rebuilt at will, and the schema is kept
    texts = dict(store.db.execute("SELECT fingerprint, text FROM schemas").fetchall())
    away = Away()
    values = Values(AvroCodec(away), texts)  # type: ignore[arg-type]
    assert values.show(message).value == {"tenant": "acme", "cents": 5}
    assert away.asked == 0
    Ingest(store, cluster, DLQ, RESULTS, values).run()  # type: ignore[arg-type]
    (found,) = Query(store.db, DLQ, Wanted(tenants=("acme",), types=("Refund",))).page(5).letters
    assert found.type == "shop.Refund"


def test_schemas_that_differ_in_tags_alone_are_told_apart_by_their_id() -> None:
    """A dead letter carries the fingerprint, which they share: values of the tagged one were shown by the other's schema."""
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    member = {"name": "email", "type": "string"}
    versions = [
        parse({"type": "record", "name": "Customer", "namespace": "crm", "fields": [member | tag]})
        for tag in ({}, {"pii": True})
    ]
    letters = []
    for offset, version in enumerate(versions):
        key = wire.key_of_id(registry.register(subject_of(SOURCE, version.name), version))
        value = compile_writer(version)({"email": "ann@example.org"}, key)
        letters.append(letter(value, version.fingerprint, offset))
    values = Values(AvroCodec(registry))  # type: ignore[arg-type]
    offline = Values(AvroCodec(Away()), values.texts)  # type: ignore[arg-type]
    for reader in (values, offline):
        assert [reader.show(each).schema for each in letters] == versions
    only_first = Values(AvroCodec(registry))  # type: ignore[arg-type]
    only_first.show(letters[0])
    unknown = Values(AvroCodec(Away()), only_first.texts).show(letters[1])  # type: ignore[arg-type]
    assert unknown.problem, "what is personal in it is not known: it must not look as if nothing were"


def test_a_remembered_text_that_is_another_schema_is_not_believed() -> None:
    _, value = foreign()
    other = parse('{"type": "record", "name": "X", "fields": [{"name": "a", "type": "long"}]}')
    texts = {remembered_as(FOREIGN.fingerprint, value[:5]): other.text}
    shown = Values(AvroCodec(Away()), texts).show(letter(value, FOREIGN.fingerprint))  # type: ignore[arg-type]
    assert shown.type in ("bytes", "text")
    assert "does not answer" in shown.problem


def test_a_registry_that_is_gone_is_asked_once_not_for_every_record() -> None:
    _, value = foreign()
    away, store = Away(), Store(None)
    values = Values(AvroCodec(away))  # type: ignore[arg-type]
    made = [letter(value[:4] + bytes([n]) + value[5:], offset=n) for n in range(50)]
    done = Ingest(store, SyntheticCluster(lambda p, o: made[o], [50]), DLQ, RESULTS, values).run()  # type: ignore[arg-type]
    assert done.read == 50
    assert done.unknown == 50, "and it is said"
    assert away.asked == 1


@pytest.mark.parametrize(
    "value", [b"\x00", b"\x00\x00\x00\x00\x01", b"\x00" * 50, b"\x00\x7f\xff\xff\xff" + b"\xff" * 99]
)
def test_bytes_that_are_no_avro_are_shown_raw(value: bytes) -> None:
    codec = registered()
    fingerprint = codec.fingerprint(SOURCE, tool_call(codec, "r", 1, "t"))
    for mark in ("", fingerprint, "ffffffffffffffff", "\u00fc"):
        shown = Values(codec).show(letter(value, mark))
        assert shown.type in ("bytes", "text")
        assert shown.problem
