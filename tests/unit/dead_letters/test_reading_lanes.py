"""What a redrive reads of a group's lanes, and keeps of it, where very much waits in them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import pytest

from bench.synthetic_letters import GROUP, SOURCE
from pipeline.core.progress import Progress
from pipeline.core.progress import encode as metadata
from pipeline.dead_letters import RedrivePolicy, canary, redrive
from pipeline.dead_letters.canary import Outcomes, wait_for_outcome
from pipeline.dead_letters.holds import find_holds
from pipeline.inspect import collect, scan
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.collect import Collector, Reach, find_layouts
from pipeline.inspect.explain import PartitionView
from pipeline.model.cluster import Position, TopicPartition, TopicSpec
from pipeline.model.headers import HELD, DeliveryHeaders, ErrorInfo, dead_letter_headers, encode
from pipeline.model.topics import CONTROL_TOPIC
from tests.unit.dead_letters.test_actions import Place, now

LANE, TIER = f"{SOURCE}.{GROUP}.replay", f"{SOURCE}.{GROUP}.retry.10m"
ERROR = ErrorInfo("retryable", "ProviderDown", "refused", "a stack of\n" * 100)
COPY = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ERROR, history=b"h" * 400)
WAITING = 50


@pytest.fixture
def place() -> Place:
    """So many records wait in the replay lane, and in a tier."""
    found = Place()
    found.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(LANE, 1), TopicSpec(TIER, 1)])
    for topic, first in ((LANE, 1_000), (TIER, 2_000)):
        copies = [encode([], dataclasses.replace(COPY, origin_offset=first + n)) for n in range(WAITING)]
        append(found.cluster, topic, [Entry(b"run-%d" % n, b"{}", each, 0) for n, each in enumerate(copies)])
    return found


@pytest.fixture
def read(place: Place, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many records of a lane tools have read."""
    found, reader_of = Counter[str](), place.cluster.reader

    def reader(*given: Any) -> Any:
        made = reader_of(*given)
        poll = made.poll

        def polled(*given: Any) -> Any:
            messages = poll(*given)
            found.update(m.topic() for m in messages if m.topic() in (LANE, TIER))
            return messages

        made.poll = polled  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(place.cluster, "reader", reader)
    return found


def waiting(place: Place) -> PartitionView:
    (layout,) = find_layouts(place.cluster.admin(), GROUP)
    collector = Collector(place.cluster, layout, CONTROL_TOPIC)
    (view,) = collector.views([0], lambda _key, _event: False, Reach())
    collector.close()
    return view


def test_held_keys_are_found_in_the_replay_lane_and_nothing_else_is_kept(
    place: Place, read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(place.cluster, LANE, [Entry(b"k", b"{}", encode([], dataclasses.replace(COPY, hold=HELD)), 0)])
    kept, lane_record = list[Any](), collect.lane_record
    monkeypatch.setattr(collect, "lane_record", lambda message: kept.append(message) or lane_record(message))
    assert [(hold.key, hold.release) for hold in find_holds(place.desk, GROUP)] == [(b"k", "")]
    assert len(kept) == 1
    assert read == {LANE: WAITING + 1}


@pytest.mark.parametrize("tool", ["redrive", "why"])
def test_a_long_lane_may_take_its_time(place: Place, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    """A minute was the bound, so that nothing could be told of a group with very much waiting, and nothing redriven."""
    hours = itertools.count(0.0, 3_600.0)

    def slow(cluster: Any, starts: Any, ends: Any, deadline_s: float | None, **_: Any) -> Any:
        return scan.read_batches(cluster, starts, ends, deadline_s, lambda: next(hours), True, math.inf)

    monkeypatch.setattr(scan, "POLL_RECORDS", 20)
    monkeypatch.setattr(collect, "read_batches", slow, raising=False)
    monkeypatch.setattr(collect, "read_to_end", lambda *given, **_: itertools.chain.from_iterable(slow(*given)))
    if tool == "redrive":
        assert find_holds(place.desk, GROUP) == []
    else:
        assert len(waiting(place).lanes) == 2 * WAITING


def test_a_canary_reads_what_waits_in_the_lanes_once(
    place: Place, read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued, then in a tier, then done: each look reads only what came since."""
    place.die(b"{}", dead_letter_headers([], COPY))
    place.desk.refresh()
    prepared = redrive.prepare(place.desk, [0], "ana", now(), RedrivePolicy())
    assert prepared.plan is not None
    plan_id = prepared.plan.plan_id
    monkeypatch.setattr(canary, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(canary, "written", lambda *_: ({0: (0, WAITING)}, []))
    read.clear()

    def copy(topic: str, hop: int) -> None:
        headers = encode([], dataclasses.replace(COPY, hop=hop, replay_id=plan_id))
        append(place.cluster, topic, [Entry(b"k", b"{}", headers, 0)])

    def settled(topic: str) -> None:
        """The copy; what came before it waits still."""
        commit = metadata(Progress(0, WAITING + 1, tuple(range(WAITING))))
        place.cluster.admin().set_group_positions(GROUP, {TopicPartition(topic, 0): Position(0, commit)})

    looks: list[tuple[tuple[str, ...], int, dict[str, int]]] = []

    def look(found: Outcomes) -> None:
        looks.append((found.waiting, found.done, dict(read)))
        read.clear()
        if len(looks) == 1:
            copy(TIER, 1)
            settled(LANE)
        elif len(looks) == 2:
            settled(TIER)

    copy(LANE, 0)
    assert wait_for_outcome(place.desk, prepared.plan, prepared.letters, 30.0, look).good
    assert looks == [
        (("queued",), 0, {LANE: WAITING + 1, TIER: WAITING}),
        ((TIER,), 0, {TIER: 1}),
        ((), 1, {}),
    ]


def test_what_waits_is_looked_at_without_its_stack_and_history(place: Place) -> None:
    for record in waiting(place).lanes:
        assert record.delivery is not None
        assert (record.delivery.error.message, record.delivery.error.stack) == ("refused", "")
        assert record.delivery.history == b""
