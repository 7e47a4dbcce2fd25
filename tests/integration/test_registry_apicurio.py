"""A Confluent-compatible registry, for real: ids, subjects, levels, foreign ids, an outage, and the command
line.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.schemas import app
from pipeline.codec import AvroCodec, SchemaNotFound, product_catalogue, subject_of
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.schema import AvroSchema, parse
from pipeline.codec.verdict import register
from pipeline.kafka.embedded import EmbeddedRegistry
from pipeline.model.errors import ConfigurationError, IncompatibleSchema, SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, ToolCall

NAME = "agent.run.ToolCall"
EVENT = ToolCall(
    event_id="e",
    run_id="r",
    sequence=0,
    occurred_at=5,
    agent="a",
    tenant="t",
    tool="search",
    call_id="c",
    arguments="{}",
)


@pytest.fixture
def registry(registry_server: EmbeddedRegistry) -> ConfluentRegistry:
    registry_server.start()  # does nothing when it runs; another test may have stopped it
    return ConfluentRegistry(RegistryPolicy(registry_server.url))


def with_field(**field: Any) -> AvroSchema:
    definition = json.loads(product_catalogue().present[NAME].text)
    definition["fields"].append(field)
    return parse(definition)


def test_nothing_is_registered_until_it_is_asked_for(registry: ConfluentRegistry, topic_name: str) -> None:
    codec = AvroCodec(registry)
    assert codec.prepare(topic_name) == list(EVENT_TYPES)
    assert registry.subjects(topic_name) == []
    with pytest.raises(SchemaNotFound):
        registry.lookup(subject_of(topic_name, NAME), product_catalogue().present[NAME])
    assert registry.versions(subject_of(topic_name, NAME)) == []
    assert registry.compatibility(subject_of(topic_name, NAME)) is None


def test_registered_contracts_write_and_read(registry: ConfluentRegistry, topic_name: str) -> None:
    ids = register(product_catalogue(), registry, topic_name, EVENT_TYPES)
    assert ids == register(product_catalogue(), registry, topic_name, EVENT_TYPES)
    subject = subject_of(topic_name, NAME)
    assert registry.compatibility(subject) == "FULL_TRANSITIVE"
    assert [version.schema_id for version in registry.versions(subject)] == [ids[subject]]
    writer = AvroCodec(registry)
    assert writer.prepare(topic_name) == []
    data = writer.encode(EVENT, topic=topic_name)
    assert int.from_bytes(data[1:5], "big") == ids[subject]
    reader = AvroCodec(ConfluentRegistry(RegistryPolicy(registry.url)))
    with pytest.raises(SchemaUnavailable) as unknown:
        reader.decode(topic_name, data)
    assert unknown.value.schema_id == ids[subject]
    reader.fetch(topic_name, ids[subject])
    assert reader.decode(topic_name, data) == EVENT
    # The registry may reorder the text it stores; the fingerprint is the same and local schemas still read
    # it.
    assert reader.fingerprint(topic_name, data) == product_catalogue().present[NAME].fingerprint


def test_foreign_and_unknown_ids_are_undecodable(registry: ConfluentRegistry, topic_name: str) -> None:
    ids = register(product_catalogue(), registry, topic_name, [NAME])
    codec = AvroCodec(registry)
    [schema_id] = ids.values()
    for topic, foreign in ((topic_name + ".other", schema_id), (topic_name, 2_000_000_000)):
        codec.fetch(topic, foreign)
        with pytest.raises(UndecodableError):
            codec.decode(topic, b"\x00" + foreign.to_bytes(4, "big") + b"body")


def test_a_breaking_version_is_refused_by_us_and_by_the_server(registry: ConfluentRegistry, topic_name: str) -> None:
    register(product_catalogue(), registry, topic_name, [NAME])
    subject = subject_of(topic_name, NAME)
    with pytest.raises(IncompatibleSchema):
        registry.register(subject, with_field(name="needed", type="string"))
    optional = with_field(name="extra", type=["null", "string"], default=None)
    registry.register(subject, optional)
    # What a newer build wrote is read by this one.
    newer = registry.lookup(subject, optional)
    codec = AvroCodec(registry)
    codec.prepare(topic_name)
    codec.fetch(topic_name, newer)
    body = codec.encode(EVENT, topic=topic_name)[5:] + b"\x02\x06new"
    assert codec.decode(topic_name, b"\x00" + newer.to_bytes(4, "big") + body) == EVENT


def test_an_outage_is_waited_for_and_known_ids_go_on(
    registry: ConfluentRegistry, registry_server: EmbeddedRegistry, topic_name: str
) -> None:
    ids = register(product_catalogue(), registry, topic_name, [NAME])
    codec = AvroCodec(registry)
    codec.prepare(topic_name, [NAME])
    data = codec.encode(EVENT, topic=topic_name)
    cold = AvroCodec(ConfluentRegistry(RegistryPolicy(registry_server.url, timeout_s=2)))
    registry_server.stop()
    try:
        assert codec.decode(topic_name, codec.encode(EVENT, topic=topic_name)) == EVENT
        for attempt in (lambda: cold.fetch(topic_name, *ids.values()), lambda: cold.prepare(topic_name)):
            with pytest.raises(SchemaUnavailable, match="did not answer"):
                attempt()
        with pytest.raises(SchemaUnavailable):
            cold.decode(topic_name, data)
    finally:
        registry_server.start()
    cold.fetch(topic_name, *ids.values())
    assert cold.decode(topic_name, data) == EVENT


class _NotARegistry(BaseHTTPRequestHandler):
    """A proxy that knows no path, and one that wants credentials."""

    def do_GET(self) -> None:
        self.send_response(401 if "locked" in self.path else 404)
        self.end_headers()
        self.wfile.write(b"<html>nothing here</html>")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NotARegistry)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize("path", ["", "/locked"])
def test_a_404_that_is_not_the_registrys_never_makes_an_id_foreign(proxy: str, path: str) -> None:
    codec = AvroCodec(ConfluentRegistry(RegistryPolicy(proxy + path, retries=0)))
    for _ in range(2):
        with pytest.raises(SchemaUnavailable):
            codec.fetch("t", 1)
        with pytest.raises(SchemaUnavailable):
            codec.decode("t", b"\x00\x00\x00\x00\x01body")


def test_the_password_is_in_no_message() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        registry = ConfluentRegistry(RegistryPolicy(f"http://me:hunter2@127.0.0.1:{port}", retries=0))
        with pytest.raises(SchemaUnavailable) as caught:
            registry.schema_by_id(1)
    assert "hunter2" not in str(caught.value)
    assert str(port) in str(caught.value)
    with pytest.raises(ConfigurationError):
        ConfluentRegistry(RegistryPolicy("localhost:8081"))


def run(*args: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*args, "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout.strip().splitlines()[-1])


def test_commands(registry: ConfluentRegistry, topic_name: str) -> None:
    at = ("--registry", registry.url)
    code, answer = run("register", topic_name, *at)
    assert code == 0
    assert len(answer["registered"]) == len(EVENT_TYPES)
    code, answer = run("list", topic_name, *at)
    assert code == 0
    assert {row["version"] for row in answer["schemas"]} == {1}
    assert len(answer["schemas"]) == len(EVENT_TYPES)
    subject = subject_of(topic_name, "agent.run.Message")
    registry.set_compatibility(subject, "NONE")
    code, answer = run("check", *at)
    assert answer["registry"] == "checked"
    assert next(row for row in answer["checks"] if row["against"] == subject)["problem"] is None
    broken = json.loads(product_catalogue().present["agent.run.Message"].text)
    broken["fields"] = [member for member in broken["fields"] if member["name"] != "content"]
    registry.register(subject, parse(broken))
    code, answer = run("check", *at)
    [row] = [row for row in answer["checks"] if row["against"] == subject]
    assert code == 1
    assert "content" in row["problem"]
    assert row["versions"] == 2
    with pytest.raises(IncompatibleSchema):
        run("register", topic_name, "--record", "Message", *at)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, answer = run("check", "--registry", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert code == 0
    assert answer["registry"].startswith("not reached")
