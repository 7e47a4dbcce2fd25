"""Numbers of dead letters: what nobody edited is written as it was, and every line of JSON is JSON for strict readers, too."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.synthetic_letters import SOURCE
from pipeline.cli.tail import _print
from pipeline.codec.schema import parse
from pipeline.codec.writer import compile_writer
from pipeline.dead_letters import converting
from pipeline.dead_letters.editing import check_edit, open_for_edit, text_of
from pipeline.dead_letters.exporting import export
from pipeline.dead_letters.literals import dumps, indented, loads
from pipeline.dead_letters.values import remembered_as
from pipeline.inspect.decoding import Shown
from pipeline.memory.log import MemoryMessage
from pipeline.model.errors import EncodeError
from pipeline.model.jobs import JobRequest
from pipeline.model.topics import TASKS_TOPIC
from tests.unit.dead_letters import test_job_inputs as jobs
from tests.unit.dead_letters.test_actions import ANA, Place, now

WRITTEN = '{"id":12345678901234567.0,"p":0.1000,"big":1.2345678901234567890123,"far":1e999,"n":1,"zero":-0.0}'


def letter(value: bytes) -> Place:
    place = Place()
    place.die(value)
    place.desk.refresh()
    return place


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON: {text}")

    return json.loads(text, parse_constant=refuse)


def test_an_edit_of_one_field_leaves_the_numbers_of_the_others_as_they_were_written() -> None:
    editable = open_for_edit(letter(WRITTEN.encode()).desk, 0)
    edited = check_edit(editable, editable.text.replace('"n": 1', '"n": 2'))
    assert edited.value.decode() == WRITTEN.replace('"n":1', '"n":2')
    assert [each for each in edited.difference if each[:1] in "+-"][2:] == ['-  "n": 1,', '+  "n": 2,']
    assert not check_edit(editable, editable.text).difference


def test_an_edit_of_digits_that_a_float_has_no_room_for_is_written_and_shown() -> None:
    editable = open_for_edit(letter(WRITTEN.encode()).desk, 0)
    edited = check_edit(editable, editable.text.replace("4567.0,", "4568.0,"))
    assert b'"id":12345678901234568.0' in edited.value
    assert '+  "id": 12345678901234568.0,' in edited.difference


def test_a_function_that_edits_gets_numbers_and_leaves_the_others_as_they_were() -> None:
    editable = open_for_edit(letter(WRITTEN.encode()).desk, 0)
    changed = copy.deepcopy(editable.value)
    assert changed["p"] * 2 == 0.2
    changed["n"] = 0.5
    assert check_edit(editable, text_of(changed, avro=False)).value.decode() == WRITTEN.replace('"n":1', '"n":0.5')


def test_what_json_does_not_have_is_shown_and_not_written() -> None:
    editable = open_for_edit(letter(b'{"price": NaN, "n": [-Infinity]}').desk, 0)
    assert editable.text == '{\n  "price": NaN,\n  "n": [\n    -Infinity\n  ]\n}\n'
    with pytest.raises(EncodeError, match="JSON has no number NaN: write another, null or a text"):
        check_edit(editable, editable.text.replace("-Infinity", "1"))
    assert check_edit(editable, '{"price": null, "n": [1]}').value == b'{"price":null,"n":[1]}'
    with pytest.raises(EncodeError, match="JSON has no number Infinity"):
        check_edit(editable, text_of({"price": math.inf}, avro=False))


def test_avro_has_such_numbers_and_keeps_them() -> None:
    schema = parse(
        '{"type": "record", "name": "Price", "namespace": "shop", "fields": '
        '[{"name": "price", "type": "double"}, {"name": "n", "type": "int"}]}'
    )
    write, place = compile_writer(schema), Place()
    head = b"\x00\x00\x00\x00\x63"
    place.desk.values.texts[remembered_as(schema.fingerprint, head)] = schema.text
    place.die(
        write({"price": math.inf, "n": 1}, head),
        [("pl.origin.topic", SOURCE.encode()), ("pl.schema", schema.fingerprint.encode())],
    )
    place.desk.refresh()
    editable = open_for_edit(place.desk, 0)
    edited = check_edit(editable, editable.text.replace('"n": 1', '"n": 2'))
    assert edited.value == write({"price": math.inf, "n": 2}, head)
    (shown,) = export(place.desk, [0], reveal=True)
    assert strict(json.dumps(shown["value"])) == {"price": "Infinity", "n": 1}


def test_the_input_of_a_job_keeps_its_numbers_too() -> None:
    request = JobRequest("a", "classify", b'{"id":"7","n":1.50,"m":12345678901234567.0}', key="k")
    editable = open_for_edit(jobs.desk_over(request), 0)
    value = loads(editable.text)
    value["payload"]["id"] = "8"
    again = check_edit(editable, indented(value))
    assert b'{"id":"8","n":1.50,"m":12345678901234567.0}' in again.value
    shown = json.loads(editable.text)  # with the digits that a float has
    assert check_edit(editable, json.dumps(shown)).value == editable.message.value()


def test_exports_and_tasks_are_json_for_strict_readers() -> None:
    place = letter(b'{"price": NaN, "x": [1e999, -1e999, 1.5]}')
    (shown,) = export(place.desk, [0])
    assert strict(json.dumps(shown))["value"] == {"price": "NaN", "x": ["Infinity", "-Infinity", 1.5]}
    converting.convert(place.desk, [0], ANA, "ana", "do it", now())
    ((_, task),) = place.records(TASKS_TOPIC)
    assert strict(json.dumps(task))["dead_letter"]["value"]["price"] == "NaN"


def test_tail_shows_bytes_and_numbers_as_dead_letters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    message = MemoryMessage(("T", 0, 1), b"k", b"", [], 5)
    value = {"raw": b"\xff\x00", "x": math.nan}
    _print(message, Shown("a.b", value), False, True)
    assert strict(capsys.readouterr().out)["value"] == {"raw": {"$bytes": "ff00"}, "x": "NaN"}
    _print(message, Shown("a.b", value), False, False)
    assert '{"raw": {"$bytes": "ff00"}, "x": "NaN"}' in capsys.readouterr().out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_it_is_written_as_the_standard_library_has_it(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    assert indented(value) == text == indented(loads(text))
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        with pytest.raises(ValueError, match="JSON has no number"):
            dumps(loads(text))
    else:
        assert dumps(value) == line == dumps(loads(text))
