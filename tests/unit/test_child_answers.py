"""What a child process says of one record: always an answer, whatever the handler gave back."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import Emit, Pipeline, Settings, Warn
from pipeline.model.errors import SchemaUnavailable
from pipeline.worker.child import Work, emits_of
from pipeline.worker.child_frames import FrameBuffer

HEAD = {"topic": "t", "partition": 0, "offset": 7, "timestamp": 1, "lane": 0, "attempt": 0, "hop": 0, "headers": []}


def answer(handler: Callable[[Any, Any], Any]) -> tuple[dict[str, Any], list[bytes | None]]:
    app = Pipeline("app", settings=Settings(broker="memory://child"))
    app.subscribe("t", group="g", value="bytes", executor="process")(handler)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        work = Work(app, "g", theirs)
        try:
            (frame,) = FrameBuffer().feed(work.run(HEAD, [b"k", b"v"]))
        finally:
            work._runner.close()
    return frame


@pytest.mark.parametrize(
    "returned",
    [
        Emit("out", 5, b"v"),  # type: ignore[arg-type]
        Emit("out", b"k", b"v", [("a", 5)]),  # type: ignore[list-item]
        Emit("out", b"k", b"v", {"trace": b"x"}),  # type: ignore[arg-type]
        Emit(5, b"k", b"v"),  # type: ignore[arg-type]
        Warn(ValueError("an error in the place of a text")),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_written_down_is_the_record_s_failure_and_no_death(returned: object) -> None:
    """The child ended of it: the record took one process after the other with it and was given up as a killer."""
    head, _ = answer(lambda _event, _ctx: returned)
    assert head["kind"] == "failed"
    assert head["failure"]["kind"] == "terminal"


def test_headers_that_are_text_arrive_as_bytes() -> None:
    head, blobs = answer(lambda _event, _ctx: Emit("out", "k", b"v", [("a", "text"), ("b", None)]))  # type: ignore[list-item]
    assert emits_of(head, blobs) == [Emit("out", b"k", b"v", [("a", b"text"), ("b", None)])]


def test_a_schema_that_the_handler_itself_misses_is_its_failure() -> None:
    def handler(_event: object, _ctx: object) -> None:
        raise SchemaUnavailable("the registry is away")

    head, _ = answer(handler)
    assert (head["kind"], head["failure"]["kind"]) == ("failed", "retryable")
