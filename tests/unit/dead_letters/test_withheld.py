"""A value that can't be decoded is not shown in place of a scrubbed one: which of its fields are personal is not known."""

from __future__ import annotations

import json

from bench.synthetic_letters import SOURCE
from pipeline.codec.schema import parse
from pipeline.codec.writer import compile_writer
from pipeline.dead_letters import converting
from pipeline.dead_letters.details import details
from pipeline.dead_letters.exporting import export
from pipeline.model.topics import TASKS_TOPIC
from tests.unit.dead_letters.test_actions import ANA, Place, now

NEWER = parse('{"type": "record", "name": "Refund", "fields": [{"name": "iban", "type": "string", "pii": true}]}')


def test_a_value_whose_schema_nobody_knows_just_now_is_shown_to_who_may_see_everything() -> None:
    """A registry that is away for a moment, while somebody exports."""
    place = Place()
    value = compile_writer(NEWER)({"iban": "DE02 1203"}, b"\x00\x00\x00\x00\x63")
    place.die(value, [("pl.origin.topic", SOURCE.encode()), ("pl.schema", NEWER.fingerprint.encode())])
    place.die(b"\xff\x00 no avro")
    place.desk.refresh()
    (first, second) = list(place.desk.fetch([0, 1]))
    shown = details(place.desk, first)
    assert "DE02" not in str(shown.value)
    assert "--reveal" in str(shown.value)
    assert shown.problem
    assert "DE02" in str(details(place.desk, first, reveal=True).value)
    assert details(place.desk, second).value == "0x" + b"\xff\x00 no avro".hex(), "bytes have no tags"
    assert "DE02" not in json.dumps(list(export(place.desk, [0])))
    converting.convert(place.desk, [0], ANA, "ana", "do it", now())
    assert "DE02" not in json.dumps(place.records(TASKS_TOPIC)[0][1])
