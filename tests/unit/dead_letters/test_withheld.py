"""A value that can't be decoded is not shown in place of a scrubbed one: which of its fields are personal is not known."""

from __future__ import annotations

import json
from typing import Any

from bench.synthetic_letters import GROUP, SOURCE
from pipeline.codec.schema import parse
from pipeline.codec.writer import compile_writer
from pipeline.dead_letters import converting
from pipeline.dead_letters.details import details
from pipeline.dead_letters.exporting import export
from pipeline.inspect.appending import Entry, append
from pipeline.model.cluster import TopicSpec
from pipeline.model.events import ToolCall
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers
from pipeline.model.topics import TASKS_TOPIC
from pipeline.replay.asking import Request
from pipeline.replay.planning import make_plan
from tests.unit.dead_letters.test_actions import ANA, CODEC, Place, now

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


def paid() -> tuple[bytes, str]:
    """A tool call whose arguments, which its contract tags, name somebody; and the schema's fingerprint."""
    event = ToolCall(
        event_id="e-1", run_id="run-1", sequence=1, occurred_at=1, agent="a", tenant="t", call_id="c", tool="pay",
        arguments='{"name": "Margarethe Sonnenschein", "account": "4711 Sonnenallee 12"}',
    )  # fmt: skip
    value = CODEC.encode(event, topic=SOURCE)
    return value, CODEC.fingerprint(SOURCE, value)


def test_the_folded_error_quotes_no_tagged_field_either() -> None:
    """Where numbers of the value were folded, too."""
    value, schema = paid()
    error = ErrorInfo("terminal", "ValueError", "no account 4711 Sonnenallee 12 of Margarethe Sonnenschein")
    place = Place()
    place.die(
        value, dead_letter_headers([], DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, schema=schema, error=error))
    )
    place.desk.refresh()
    (message,) = place.desk.fetch([0])
    known = details(place.desk, message).letter
    assert "Sonnen" not in f"{known.message} {known.folded} {known.key}"
    assert known.folded.startswith("no account [")
    assert "Sonnenschein" in details(place.desk, message, reveal=True).letter.folded
    assert "Sonnen" not in json.dumps(list(export(place.desk, [0])))


def test_samples_of_a_plan_are_masked_as_dead_letters_are_shown() -> None:
    """They are printed, and stand in the plan's file."""
    value, _ = paid()
    place = Place()
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec("copies", 1)])
    unknown = compile_writer(NEWER)({"iban": "DE02 1203"}, b"\x00\x00\x00\x00\x63")
    rows = (b"Margarethe Sonnenschein", value), (b"k", unknown), (b"k", b'{"api_key": "sk-1", "n": 1}')
    append(place.cluster, SOURCE, [Entry(key, raw, [], 0) for key, raw in rows])
    request = Request(SOURCE, "ana", to_topic="copies", allowed=frozenset({"copies"}))
    preview: Any = make_plan(place.cluster, request, CODEC, now()).preview
    call, refund, plain = preview["samples"]
    assert "Sonnen" not in str(call)
    assert "'tool': 'pay'" in call["value"], "what is not tagged is shown"
    assert "DE02" not in str(refund)
    assert "not decoded" in refund["value"]
    assert plain["value"] == "{'api_key': '[secret]', 'n': 1}"
