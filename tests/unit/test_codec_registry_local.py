"""The local registry: processes that share a log agree on every id, whatever order they write in."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pipeline.codec import AvroCodec, SchemaCatalogue, SchemaNotFound, product_catalogue, subject_of
from pipeline.codec.registry_local import LocalRegistry, LogEntry, MemorySchemaLog, guid_of
from pipeline.codec.schema import AvroSchema, parse
from pipeline.model.errors import IncompatibleSchema
from pipeline.model.events import EVENT_TYPES

NAMES = sorted(EVENT_TYPES)
NOTHING = SchemaCatalogue({})


def simple(name: str, *fields: dict[str, Any]) -> AvroSchema:
    return parse({"type": "record", "name": name, "namespace": "x", "fields": [{"name": "a", "type": "int"}, *fields]})


class CompactingLog(MemorySchemaLog):
    """Drops the older entries of a key as Kafka's cleaner does: what is left keeps its offset."""

    def compacted(self) -> MemorySchemaLog:
        last = {key: index for index, (key, _) in enumerate(self.entries)}
        log = MemorySchemaLog()
        log.entries = [entry for index, entry in enumerate(self.entries) if last[entry[0]] == index]
        return log


@pytest.mark.parametrize("seed", range(20))
def test_registries_on_one_log_agree(seed: int) -> None:
    rng = random.Random(seed)
    log = CompactingLog()
    registries = [LocalRegistry(log, product_catalogue()) for _ in range(3)]
    seen: dict[str, set[int]] = {}
    for _ in range(60):
        name = rng.choice(NAMES)
        subject = subject_of(rng.choice(["t1", "t2"]), name)
        schema_id = rng.choice(registries).lookup(subject, product_catalogue().present[name])
        seen.setdefault(name, set()).add(schema_id)
    assert all(len(ids) == 1 for ids in seen.values()), f"seed {seed}"
    late = LocalRegistry(log.compacted(), product_catalogue())
    for name, ids in seen.items():
        for schema_id in ids:
            assert late.schema_by_id(schema_id) == product_catalogue().present[name].text
            assert set(late.subjects_of(schema_id)) <= {subject_of("t1", name), subject_of("t2", name)}


def test_ids_follow_from_the_schema_and_fit_the_wire() -> None:
    one, other = (LocalRegistry(MemorySchemaLog(), product_catalogue()) for _ in range(2))
    for name in NAMES:
        schema = product_catalogue().present[name]
        schema_id = one.lookup(subject_of("t", name), schema)
        assert schema_id == other.lookup(subject_of("u", name), schema)
        assert 0 < schema_id < 2**31


class RacingLog(MemorySchemaLog):
    """Between a writer's read and its append another writer takes the same id for another schema, once."""

    def __init__(self, rival: str) -> None:
        super().__init__()
        self.rival: str | None = rival

    def append(self, key: str, value: bytes) -> None:
        if self.rival is not None:
            body = {"subject": "rival", "id": json.loads(value)["id"], "schema": self.rival}
            self.rival = None
            super().append("schema rival 00", json.dumps(body).encode())
        super().append(key, value)


def test_the_first_claim_of_an_id_wins_and_the_other_takes_the_next() -> None:
    rival, mine = simple("Rival"), simple("Mine")
    log = RacingLog(rival.text)
    registry = LocalRegistry(log, NOTHING)
    schema_id = registry.register("s", mine)
    assert registry.schema_by_id(schema_id) == mine.text
    assert registry.schema_by_id(schema_id - 1) == rival.text
    assert registry.subjects_of(schema_id - 1) == ["rival"]
    assert LocalRegistry(log, NOTHING).lookup("s", mine) == schema_id


def test_only_own_contracts_are_registered_by_use() -> None:
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    with pytest.raises(SchemaNotFound, match=r"x\.Foreign"):
        registry.lookup("t-x.Foreign", simple("Foreign"))
    assert registry.subjects() == []
    with pytest.raises(SchemaNotFound):
        registry.schema_by_id(1)
    with pytest.raises(SchemaNotFound):
        registry.schema_by_guid("0" * 8)


def test_versions_are_held_to_the_level_of_the_subject() -> None:
    registry = LocalRegistry(MemorySchemaLog(), NOTHING)
    first, second = simple("R"), simple("R", {"name": "b", "type": "int"})
    optional = simple("R", {"name": "b", "type": "int", "default": 0})
    registry.register("t-x.R", first)
    with pytest.raises(IncompatibleSchema, match="b is not written and has no default"):
        registry.register("t-x.R", second)
    registry.register("t-x.R", optional)
    assert [version.text for version in registry.versions("t-x.R")] == [first.text, optional.text]
    assert [version.version for version in registry.versions("t-x.R")] == [1, 2]
    assert registry.compatibility("t-x.R") is None
    registry.set_compatibility("t-x.R", "NONE")
    assert registry.compatibility("t-x.R") == "NONE"
    assert registry.register("t-x.R", second) != registry.register("t-x.R", first)


def test_a_guid_names_a_schema_too() -> None:
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    AvroCodec(registry).prepare("t")
    text = product_catalogue().present[NAMES[0]].text
    assert registry.schema_by_guid(guid_of(text)) == text


def test_damage_in_the_log_is_passed_over() -> None:
    log = MemorySchemaLog()
    bad: list[LogEntry] = [
        ("schema x", b"\xff"),
        ("schema y", b"{}"),
        ("other", b'{"subject": "s", "id": "n", "schema": "\\"int\\""}'),
        ("schema z", b'{"subject": "s", "id": 4, "schema": "{"}'),
        ("level a", b"[]"),
    ]
    log.entries += bad
    registry = LocalRegistry(log, product_catalogue())
    assert AvroCodec(registry).prepare("t") == []
    assert len(registry.subjects("t-")) == len(EVENT_TYPES)
