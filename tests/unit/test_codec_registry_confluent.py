"""What a registry's answers mean, by a server on this machine that gives any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.codec import AvroCodec, SchemaNotFound
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.wire import SCHEMA_ID_HEADER
from pipeline.model.errors import SchemaUnavailable, UndecodableError

GUID = "00000000-0000-0000-0000-000000000007"
NO_SUCH_PATH = {"error_code": 404, "message": "HTTP 404 Not Found"}
NO_SUCH_SCHEMA = {"error_code": 40403, "message": "Schema not found"}


class _Server(ThreadingHTTPServer):
    answers: dict[str, tuple[int, object]]


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        kind = self.path.split("/")[2]
        status, body = self.server.answers.get(kind, (404, NO_SUCH_PATH))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Answers) as server:
        server.answers = {"ids": (404, NO_SUCH_SCHEMA)}
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def _registry(server: _Server) -> ConfluentRegistry:
    return ConfluentRegistry(RegistryPolicy(f"http://127.0.0.1:{server.server_port}", retries=0))


def test_a_registry_that_knows_no_guids_makes_their_records_undecodable(server: _Server) -> None:
    """They waited for it without end: that it has no such question was taken for an outage."""
    codec = AvroCodec(_registry(server))
    headers: list[tuple[str, bytes | None]] = [(SCHEMA_ID_HEADER, b"\x01" + bytes(15) + b"\x07")]
    with pytest.raises(SchemaUnavailable) as unknown:
        codec.decode("orders", b"body", headers)
    codec.fetch("orders", unknown.value.schema_id or 0)
    with pytest.raises(UndecodableError, match=f"by ids only, so schema GUID {GUID} can't be looked up"):
        codec.decode("orders", b"body", headers)


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"ids": (503, {})},
        {"ids": (404, NO_SUCH_SCHEMA), "guids": (503, {})},
        {"ids": (404, NO_SUCH_SCHEMA), "guids": (401, {})},
    ],
    ids=("a proxy's 404", "away since", "away", "not allowed"),
)
def test_what_may_be_an_outage_settles_nothing(server: _Server, answers: dict[str, tuple[int, object]]) -> None:
    server.answers = answers
    with pytest.raises(SchemaUnavailable):
        _registry(server).schema_by_guid(GUID)


def test_a_guid_that_the_registry_does_not_have(server: _Server) -> None:
    server.answers["guids"] = (404, NO_SUCH_SCHEMA)
    with pytest.raises(SchemaNotFound, match="does not have schema GUID"):
        _registry(server).schema_by_guid(GUID)
