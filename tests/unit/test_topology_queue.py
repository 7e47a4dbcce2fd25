"""The topics of a queue: inbox, store, replay lane, dead letters; made once, put right, and refused where they can't be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_types import JobQueue
from pipeline.model.policies import HandlerKind, RetryPolicy, Subscription
from pipeline.topology import AddPartitions, CreateTopic, Defaults, SetConfig, check, discover, plan

INBOX, STATE = "jobs.default", "jobs.default.default.state"
REPLAY, DEAD = "jobs.default.default.replay", "jobs.default.default.dlq"


async def nothing(_event: object) -> None: ...


def queue(name: str = "default") -> Subscription:
    made = JobQueue(name, {})
    retry = RetryPolicy(tiers_ms=())
    return Subscription(made.topic, name, nothing, HandlerKind.ASYNC, order="none", retry=retry, jobs=made)


def planned(existing: dict[str, TopicSpec]) -> dict[str, TopicSpec]:
    made = plan([queue()], existing, Defaults(partitions=4, replication_factor=3))
    assert made.findings == ()
    return {action.spec.name: action.spec for action in made.actions if isinstance(action, CreateTopic)}


def test_a_queue_has_an_inbox_a_store_a_replay_lane_and_dead_letters() -> None:
    specs = planned({})
    own = {INBOX, STATE, REPLAY, DEAD}
    assert {name for name in specs if name.startswith("jobs.")} == own
    assert {specs[name].partitions for name in own} == {4}
    assert specs[STATE].configs["cleanup.policy"] == "compact"
    assert specs[STATE].configs["min.compaction.lag.ms"] == "3600000"
    assert int(specs[STATE].configs["max.message.bytes"]) > 2 * 1_048_588
    assert specs[INBOX].configs["message.timestamp.type"] == "LogAppendTime"
    assert specs[INBOX].configs["cleanup.policy"] == "delete"
    assert check([queue()], specs) == []
    assert plan([queue()], specs).actions == ()


def test_what_would_lose_jobs_is_put_right_and_keeps_a_worker_from_starting() -> None:
    specs = planned({})
    wrong = {
        STATE: {"cleanup.policy": "delete", "min.compaction.lag.ms": "0"},
        INBOX: {"cleanup.policy": "compact", "message.timestamp.type": "CreateTime", "retention.ms": "3600000"},
    }
    for name, configs in wrong.items():
        specs[name] = replace(specs[name], configs={**specs[name].configs, **configs})
    actions = plan([queue()], specs).actions
    found = {(action.topic, action.setting) for action in actions if isinstance(action, SetConfig)}
    assert found == {(name, setting) for name, configs in wrong.items() for setting in configs}
    errors = {(f.topic, f.setting) for f in check([queue()], specs) if f.level == "error"}
    assert errors == found


def test_a_store_has_as_many_partitions_as_its_inbox() -> None:
    specs = planned({})
    specs[STATE] = replace(specs[STATE], partitions=2)
    (wider,) = (action for action in plan([queue()], specs).actions if isinstance(action, AddPartitions))
    assert (wider.topic, wider.total) == (STATE, 4)
    specs[STATE] = replace(specs[STATE], partitions=8)
    (finding,) = plan([queue()], specs).findings
    assert (finding.level, finding.topic, finding.setting) == ("error", STATE, "partitions")


def test_tools_find_the_store_by_name() -> None:
    specs = planned({})
    (found,) = discover("default", specs)
    assert found.topics.state == STATE
    del specs[STATE]
    (found,) = discover("default", specs)
    assert found.topics.state is None


def test_nobody_else_may_subscribe_to_a_store() -> None:
    other = Subscription(STATE, "other", nothing, HandlerKind.ASYNC)
    with pytest.raises(ConfigurationError, match=r"is a lane of group 'default'"):
        plan([queue(), other], {})
