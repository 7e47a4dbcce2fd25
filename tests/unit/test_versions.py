"""Bytes that workers of another version wrote: those of version 1 are kept here as they were, and newer ones add, never change.

The texts below are what 0.1.0 writes. A worker that can't read them loses what waits in the lanes on the next deploy, so they
are never edited: a change of format adds a case beside them.
"""

from __future__ import annotations

import pytest

from pipeline.core.progress import Progress, decode, encode
from pipeline.model import headers
from pipeline.model.control import Pause
from pipeline.model.control import decode as decode_switch
from pipeline.model.control import encode as encode_switch
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, Pointer

LANE = DeliveryHeaders(
    2, 3, 7, "agent.run.events", 4, 123456, 1700000000000, "billing", 1700000010000, 1700000020000, 1700000000500,
    replay_id="r-1", replay_count=1, schema="abcdef0123456789", error=ErrorInfo("Timeout", "TimeoutError", "no answer"),
)  # fmt: skip
LANE_BYTES = [
    ("tenant", b"t1"),
    (
        "pl.d",
        b"1 2 3 7 4 123456 1700000000000 1700000010000 1700000020000 1700000000500 1 agent.run.events/r-1 billing",
    ),
    ("pl.schema", b"abcdef0123456789"),
    ("pl.error.class", b"Timeout"),
    ("pl.error.type", b"TimeoutError"),
    ("pl.error.message", b"no answer"),
]
LANE_APART_BYTES = [
    ("pl.d", b"1 2 3 7 4 123456 1700000000000 1700000010000 1700000020000 1700000000500 1 agent.run.events billing"),
    ("pl.replay.id", b"r-1"),
    *LANE_BYTES[2:],
]
"""Before 0.1.0 the replay's id had a header of its own."""
DEAD = DeliveryHeaders(
    0, 1, 7, "agent.run.events", 4, 5, 0, "billing",
    error=ErrorInfo("UnreadableBatch", "bad_batch", "gone"), pointer=Pointer("bad_batch", 34),
)  # fmt: skip
DEAD_BYTES = [
    ("pl.v", b"1"),
    ("pl.attempt", b"0"),
    ("pl.hop", b"1"),
    ("pl.epoch", b"7"),
    ("pl.origin.partition", b"4"),
    ("pl.origin.offset", b"5"),
    ("pl.origin.timestamp", b"0"),
    ("pl.origin.topic", b"agent.run.events"),
    ("pl.group", b"billing"),
    ("pl.pointer.kind", b"bad_batch"),
    ("pl.pointer.last", b"34"),
    ("pl.error.class", b"UnreadableBatch"),
    ("pl.error.type", b"bad_batch"),
    ("pl.error.message", b"gone"),
    ("__dlq.errors.topic", b"agent.run.events"),
    ("__dlq.errors.partition", b"4"),
    ("__dlq.errors.offset", b"5"),
    ("__dlq.errors.exception.class.name", b"bad_batch"),
    ("__dlq.errors.exception.message", b"gone"),
]
PROGRESS = {
    "PLAIN": Progress(5, 5, (), 3, {"10s": 7}),
    "BITS": Progress(100, 116, (100, 103, 104, 111), 9, {"10s": 70_000, "replay": 0}),
    "RUNS": Progress(100, 9_000, (100, 5_000), 1, {}),
}
PROGRESS_TEXTS = {"PLAIN": "pl1:AwEDMTBzBwAA", "BITS": "pl1:CQIDMTBz8KIEBnJlcGxheQABGQg", "RUNS": "pl1:AQACAaMmAZ8f"}


def test_headers_of_version_1_are_read_and_still_written() -> None:
    assert headers.decode(LANE_BYTES) == headers.decode(LANE_APART_BYTES) == LANE
    assert headers.encode([("tenant", b"t1")], LANE) == LANE_BYTES
    assert headers.decode(DEAD_BYTES) == DEAD
    assert headers.dead_letter_headers([], DEAD) == DEAD_BYTES


@pytest.mark.parametrize("known", [LANE_BYTES, DEAD_BYTES], ids=["lane", "dead letter"])
def test_names_of_a_newer_version_are_passed_over(known: headers.Headers) -> None:
    """Rolled back, a worker meets what the newer one wrote: a higher version, and headers that it does not know."""
    newer = [("pl.v", b"2") if name == "pl.v" else (name, value) for name, value in known]
    newer += [("pl.not_invented_yet", b"\xff\x00"), ("pl.neither", None)]
    assert headers.decode(newer) == headers.decode(known)


@pytest.mark.parametrize("name", PROGRESS)
def test_commit_metadata_of_version_1_is_read_and_still_written(name: str) -> None:
    known = PROGRESS[name]
    assert decode(known.offset, PROGRESS_TEXTS[name]) == known
    assert encode(known) == PROGRESS_TEXTS[name]


@pytest.mark.parametrize("text", ["pl2:AAAA", "pl1:", "pl1:%%%", "", "somebody else's"])
def test_commit_metadata_that_is_not_ours_says_nothing_beyond_its_offset(text: str) -> None:
    """What a newer version may write runs again after a roll-back; nothing is taken for done that is not."""
    assert decode(17, text) == Progress(17, 17)


def test_a_switch_of_version_1_is_read_and_still_written() -> None:
    switch = Pause("billing", "ana", "lunch", 1)
    value = b'{"at_ms": 1, "group": "billing", "kind": "pause", "who": "ana", "why": "lunch"}'
    assert decode_switch(value) == switch
    assert encode_switch(switch) == (b"pause/billing", value)
