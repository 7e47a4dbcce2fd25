"""A record that the target refuses for what it is has its result, and the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.inspect.appending import Entry, append
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.producer import MemoryProducer
from pipeline.model.cluster import Acknowledgements, OutRecord, TopicSpec
from pipeline.model.errors import RecordTooLarge
from pipeline.model.topics import AUDIT_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC
from pipeline.replay.asking import Request
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from pipeline.replay.status import status_of


def test_a_record_larger_than_the_target_takes_is_told_and_the_rest_is_sent() -> None:
    cluster = MemoryCluster("refusals")
    admin = cluster.admin()
    admin.create_topics(
        [
            TopicSpec("from", 1, configs={"max.message.bytes": "4000000"}),
            TopicSpec("to", 1, configs={"max.message.bytes": "1000000"}),
            *(TopicSpec(name, 1) for name in (AUDIT_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC)),
        ]
    )
    append(cluster, "from", [Entry(b"k", b"x" * size, partition=0) for size in (10, 1_500_000, 20)])
    plan = make_plan(cluster, Request("from", "ana", to_topic="to", allowed=frozenset({"to"})), None, 1)
    surroundings = Surroundings(cluster)
    done = run_plan(surroundings, plan, Reason("ana", "a test"), run_options(surroundings, plan, "ana"))
    assert (done.state, done.counts) == ("finished", {"written": 2, "failed": 1})
    ((partition, offset, outcome, error),) = status_of(surroundings, plan).failures
    assert (partition, offset, outcome) == (0, 1, "failed")
    assert "max.message.bytes" in error


@pytest.mark.parametrize("delay_ms", [0, 30])
def test_a_record_larger_than_the_client_takes_is_told_and_the_rest_is_sent(
    monkeypatch: pytest.MonkeyPatch, delay_ms: int
) -> None:
    """It raises, before any broker hears of the record: that ended the replay, at the same record each time it was taken up."""
    cluster, large = MemoryCluster("client refusals"), (1, 3, 4, 6)
    cluster.faults.ack_delay_ms = (delay_ms, delay_ms)
    names = ("from", "to", AUDIT_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC)
    cluster.admin().create_topics([TopicSpec(name, 1) for name in names])
    append(cluster, "from", [Entry(b"k", b"%d" % n * (900 if n in large else 1), partition=0) for n in range(7)])
    send_many = MemoryProducer.send_many

    def limited(self: Any, topic: str, partition: int, records: Sequence[OutRecord], answers: Acknowledgements) -> int:
        fit = next(
            (n for n, (_, value, _) in enumerate(records) if topic == "to" and len(value or b"") > 800), len(records)
        )
        if records and not fit:
            raise RecordTooLarge("larger than the client takes")
        return send_many(self, topic, partition, records[:fit], answers)

    monkeypatch.setattr(MemoryProducer, "send_many", limited)
    plan = make_plan(cluster, Request("from", "ana", to_topic="to", allowed=frozenset({"to"})), None, 1)
    surroundings = Surroundings(cluster)
    done = run_plan(surroundings, plan, Reason("ana", "a test"), run_options(surroundings, plan, "ana"))
    assert (done.state, done.counts) == ("finished", {"written": 3, "failed": 4})
    failures = status_of(surroundings, plan).failures
    assert [(offset, error) for _, offset, _, error in failures] == [(n, "larger than the client takes") for n in large]
    assert [record.value() for record in cluster.logs["to"][0].records()] == [b"0", b"2", b"5"]
