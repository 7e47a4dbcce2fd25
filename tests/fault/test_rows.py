"""A part of the fault plan for every run of the tests: few records, workers killed and answers lost on three real nodes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.app import Pipeline
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, ClusterUnavailable
from pipeline.settings import Settings
from tests.fault.ground import LOGIN, NODES, Ground, ground
from tests.fault.plan import CLASSIC, EOS, ROWS
from tests.fault.running import run_trial
from tests.fault.trial import Plan
from tests.integration.waiting import until

pytestmark = [pytest.mark.first, pytest.mark.timeout(240)]
QUICK = ((1, CLASSIC), (1, EOS), (8, CLASSIC))
"""Workers killed in their handlers, without and with transactions, and answers lost behind the proxies."""
PLAN = Plan(records=1_500, lasts_s=4.0, seed=11)


@pytest.fixture(scope="module")
def field() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.mark.parametrize(("number", "variant"), QUICK, ids=["1", "1-exactly_once", "8"])
def test_a_row_of_the_plan_holds(field: Ground, number: int, variant: dict[str, Any]) -> None:
    row = next(row for row in ROWS if row.number == number)
    assert variant in row.variants
    result = run_trial(field, row, variant, PLAN, print)
    assert result.good, result.problems
    assert result.records == PLAN.records
    assert (result.lost, result.order_breaks) == (0, 0)
    assert result.faults


def test_an_offset_that_a_silent_leader_does_not_tell_is_an_error(field: Ground) -> None:
    """What librdkafka gives for such a partition is -1001 and no error; every worker would take it for the end of the log."""
    app = Pipeline("t", settings=Settings(broker=field.proxied, client=LOGIN))
    admin = app.cluster.admin()
    topic = f"silent-{uuid.uuid4().hex[:8]}"
    admin.create_topics([TopicSpec(topic, 6)])
    places = [TopicPartition(topic, p) for p in range(6)]

    def answered() -> bool:
        try:
            return all(end == 0 for end in admin.end_offsets(places).values())
        except ClusterError:
            return False  # "not leader": a node hears of a new topic a little later

    until("all leaders answer", answered)
    field.proxies.freeze(field.leaders(topic)[0])
    try:
        with pytest.raises(ClusterUnavailable):
            admin.end_offsets(places, timeout_s=1.0)
    finally:
        field.proxies.heal()
    until("they answer again", answered)


def test_a_request_that_waits_for_a_node_that_is_away_takes_no_processor(field: Ground) -> None:
    """librdkafka makes a connection for it anew, and at once, each time that the last one was refused."""
    app = Pipeline("t", settings=Settings(broker=field.direct))
    admin = app.cluster.admin()
    topic = f"away-{uuid.uuid4().hex[:8]}"
    admin.create_topics([TopicSpec(topic, 6, 3)])
    places = [TopicPartition(topic, p) for p in range(6)]
    until("all leaders answer", lambda: all(end == 0 for end in _ends(admin, places)))
    field.kill(field.leaders(topic)[0])
    try:
        began, cpu = time.monotonic(), time.process_time()
        for _ in range(3):
            _ends(admin, places)
        seconds = time.monotonic() - began
        assert (time.process_time() - cpu) / max(seconds, 1.0) < 0.25, f"of a processor, for {seconds:.1f} s"
    finally:
        field.restore()


def _ends(admin: Any, places: list[TopicPartition]) -> list[int]:
    """[-1] while a leader is away, or a node does not know of the topic yet."""
    try:
        return list(admin.end_offsets(places, timeout_s=1.0).values())
    except ClusterError:
        return [-1]


def test_every_row_of_the_plan_is_there() -> None:
    assert [row.number for row in ROWS] == list(range(1, 32))
    assert all(row.variants for row in ROWS)
    assert len(NODES) == 3
