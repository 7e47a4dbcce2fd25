"""Dead letters of jobs as people read and edit them: the input is JSON, and what is shown can be given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import Settings
from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.jobs import REQUEST, InboxCodec
from pipeline.codec.registry import subject_of
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.dead_letters import edit_dead_letter, show_dead_letter
from pipeline.dead_letters.acting import Actor
from pipeline.dead_letters.desk import Desk, Topics
from pipeline.dead_letters.details import details
from pipeline.dead_letters.editing import Edited, check_edit, open_for_edit
from pipeline.dead_letters.exporting import plain_of
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import EncodeError
from pipeline.model.jobs import JobRequest
from pipeline.model.policies import Backoff
from pipeline.model.topics import AUDIT_TOPIC, RESULTS_TOPIC

INBOX, DEAD = "jobs.default", "jobs.default.default.dlq"
ANA = Actor("ana@ops", "a test of hers")
REQUESTED = JobRequest("a", "classify", b'{"id":"7","n":1.50}', key="k", tenant="acme", backoff=Backoff(1, 2.0, 3))


def _codec() -> AvroCodec:
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    for name, schema in product_catalogue().present.items():
        registry.register(subject_of(INBOX, name), schema)
    codec = AvroCodec(registry)
    assert InboxCodec(codec, INBOX).prepare() == []
    return codec


CODEC = _codec()


def desk_over(request: JobRequest) -> Desk:
    """With one dead letter."""
    cluster = MemoryCluster("inputs")
    cluster.admin().create_topics([TopicSpec(DEAD, 1), TopicSpec(RESULTS_TOPIC, 1), TopicSpec(AUDIT_TOPIC, 1)])
    producer = cluster.producer()
    value = InboxCodec(CODEC, INBOX).request(request)
    producer.send(DEAD, b"k", value, [("pl.origin.topic", INBOX.encode())], partition=0)
    producer.flush(10)
    desk = Desk(cluster, CODEC, Topics(DEAD), None)
    desk.refresh()
    return desk


def edited(request: JobRequest, **change: Any) -> Edited:
    editable = open_for_edit(desk_over(request), 0)
    return check_edit(editable, json.dumps({**json.loads(editable.text), **change}))


def written(made: Edited) -> JobRequest:
    found = InboxCodec(CODEC, INBOX).read(made.value, 0)
    assert isinstance(found, JobRequest)
    return found


def shown(request: JobRequest) -> Any:
    """As `dlq show --reveal --json` prints it."""
    desk = desk_over(request)
    (message,) = desk.fetch([0])
    return json.loads(json.dumps(plain_of(details(desk, message, reveal=True))["value"]))


@pytest.mark.parametrize(
    ("payload", "form"),
    [
        (b'{"id":"7","text":"a\xc3\xa4"}', {"id": "7", "text": "aä"}),
        (b'"text"', "text"),
        (b"7", 7),
        (b"null", None),
        (b'[{"$bytes":"zz"},{"$record":5,"value":1}]', [{"$bytes": "zz"}, {"$record": 5, "value": 1}]),
        (b"", {"$bytes": ""}),
        (b"\xff\x00", {"$bytes": "ff00"}),
        (b"NaN", {"$bytes": "4e614e"}),
        (b"1e999", {"$bytes": "3165393939"}),
        (b'"\\ud800"', {"$bytes": "225c756438303022"}),
        (b'{"$bytes":"00"}', {"$bytes": "7b22246279746573223a223030227d"}),
    ],
)
def test_the_input_of_a_job_is_shown_as_its_json_and_what_is_shown_is_taken_back(payload: bytes, form: object) -> None:
    request = REQUESTED._replace(payload=payload, backoff=None)
    assert shown(request)["payload"] == form
    assert json.loads(open_for_edit(desk_over(request), 0).text)["payload"] == form
    made = edited(request, **{**shown(request), "tenant": "b"})
    assert written(made) == request._replace(tenant="b")
    assert not edited(request, **shown(request)).difference


@pytest.mark.parametrize("given", [{"id": "8"}, "text", 7, None, ["ä"], {"$bytes": "7b7d"}])
def test_an_edited_input_is_written_as_the_json_that_it_is(given: Any) -> None:
    made = edited(REQUESTED, payload=given)
    payload = written(made).payload
    assert payload == (b"{}" if isinstance(given, dict) and "$bytes" in given else _compact(given))
    assert made.difference
    assert written(made) == REQUESTED._replace(payload=payload)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_an_input_that_nobody_edited_stays_as_it_was_to_the_byte() -> None:
    request = REQUESTED._replace(payload=b'{ "n": 1.50 }')
    assert written(edited(request, attempts=9)) == request._replace(attempts=9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "b"}, r"JobRequest\.id can't be changed, it would be another job"),
        ({"type": "other"}, r"JobRequest\.type can't be changed, it would be another job"),
        ({"key": None}, r"JobRequest\.key can't be changed, a redrive keeps that of the job"),
        ({"dedup_id": "d"}, r"JobRequest\.dedup_id can't be changed"),
        (
            {"payload": {"$bytes": "zz"}},
            r'JobRequest\.payload does not fit: write bytes as \{"\$bytes": "hex digits"\}',
        ),
        ({"payload": float("inf")}, r"JobRequest\.payload does not fit: write the job's input as JSON"),
        ({"payload": "\ud800"}, r"JobRequest\.payload does not fit: write the job's input as JSON"),
        ({"attempts": {"$bytes": 5}}, r"JobRequest\.attempts does not fit: write bytes as"),
    ],
)
def test_what_would_be_another_job_or_no_input_is_refused_with_the_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(EncodeError, match=said):
        edited(REQUESTED, **change)


def test_an_input_can_be_given_in_place_of_one_that_lies_elsewhere_and_not_beside_it() -> None:
    request = REQUESTED._replace(payload=b"", payload_ref="queue:jobs.default/a/input")
    with pytest.raises(EncodeError, match="set payload_ref to null"):
        edited(request, payload={"id": "8"})
    made = written(edited(request, payload={"id": "8"}, payload_ref=None))
    assert made == request._replace(payload=b'{"id":"8"}', payload_ref=None)
    assert written(edited(request, attempts=3)) == request._replace(attempts=3)


def test_a_request_without_its_input_is_refused() -> None:
    editable = open_for_edit(desk_over(REQUESTED), 0)
    value = json.loads(editable.text)
    del value["payload"]
    with pytest.raises(EncodeError, match="lacks field payload"):
        check_edit(editable, json.dumps(value))


class Desks:
    """As much of an application as the functions ask for."""

    codec = CODEC
    settings = Settings(broker="memory://inputs")

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def layouts(self) -> tuple[()]:
        return ()


def _in_place(value: Any) -> Any:
    value["payload"]["id"] = "8"
    return value


@pytest.mark.parametrize(
    "change", [_in_place, lambda v: {**v, "payload": {"id": "8"}}, lambda v: {**v, "payload": b'{"id": "8"}'}]
)
def test_functions_show_and_change_the_input_as_json_and_take_bytes_too(change: Callable[[Any], Any]) -> None:
    desk = desk_over(REQUESTED._replace(payload=b'{"id":"7"}'))
    app = Desks(desk.cluster)
    assert show_dead_letter(app, (0, 0), topic=DEAD).value["payload"] == "[pii]"
    assert show_dead_letter(app, (0, 0), topic=DEAD, reveal=ANA).value["payload"] == {"id": "7"}
    done = edit_dead_letter(app, (0, 0), change, ANA, topic=DEAD)
    assert done.details["position"] == "0:1"
    assert show_dead_letter(app, (0, 1), topic=DEAD, reveal=ANA).value["payload"] == {"id": "8"}


def test_a_change_in_place_does_not_hide_that_it_is_another_job() -> None:
    request = REQUESTED._replace(payload=b"\xff")
    editable = open_for_edit(desk_over(request), 0)
    editable.value["id"] = "b"
    with pytest.raises(EncodeError, match="another job"):
        check_edit(editable, json.dumps({**json.loads(editable.text), "id": "b"}))


def test_the_name_of_the_contract_is_that_of_the_codec() -> None:
    assert open_for_edit(desk_over(REQUESTED), 0).shown.type == REQUEST
