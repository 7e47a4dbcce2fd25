"""A record that the target refuses for what it is has its result, and the others go on."""

from __future__ import annotations

from pipeline.inspect.appending import Entry, append
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import TopicSpec
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
