"""Policies and client settings as librdkafka's properties: the one place that knows their names.

A caller's own settings (security, tuning) win over ours, except those that the contract rests on. A key with the prefix
`consumer.`, `producer.` or `admin.` goes to that kind of client only: `producer.linger.ms`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pipeline.model.cluster import ConsumerPolicy
from pipeline.model.errors import ConfigurationError
from pipeline.model.transactions import TransactionPolicy

ROLES = ("consumer", "producer", "admin")
PROTOCOLS = ("classic", "consumer")

_COMMON = {
    # A topic that appears, or gets partitions, is seen within this time (librdkafka's own default is 5 minutes).
    "topic.metadata.refresh.interval.ms": 5_000,
    "metadata.max.age.ms": 15_000,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 2_000,
    # A connection that goes nowhere (a half-open one, a node behind a network that was parted) is given up after this time without
    # an answer, and not after 60,000: many requests wait for a connection before another one is made. Nothing that brokers do for
    # us takes longer, but for joining a group, which librdkafka exempts. A whole answer has to arrive in it: see `fetch.max.bytes`.
    "socket.timeout.ms": 10_000,
    "socket.connection.setup.timeout.ms": 10_000,
    "socket.keepalive.enable": True,
    "log.connection.close": False,
    "allow.auto.create.topics": False,
}
_FETCHING = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": False,
    "check.crcs": True,
    # 50 MB by default, which a slow line could not carry within `socket.timeout.ms`; one larger batch still comes whole.
    "fetch.max.bytes": 16_777_216,
    # After a full queue the fetcher looks again this soon; 1,000 (the default) costs three quarters of the rate.
    "fetch.queue.backoff.ms": 5,
    "fetch.error.backoff.ms": 100,
}
_PRODUCING = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    # Measured publish -> poll, p50: 0.4 ms at 0, 1.2 ms at anything up to 1, 4.2 ms at 5. Under load batches fill anyway
    # while five requests are in flight; raw sending is about 0.7 of what it is at 5.
    "linger.ms": 0,
    # Never give up by time: a record that did, sent again, would come behind later records of its key. Bounds are the
    # queue's size here, and the buffer policy and drain deadline of those who send.
    "delivery.timeout.ms": 0,
    # How long a broker waits for its replicas: it has to answer (and is asked again) before its connection is given up.
    "request.timeout.ms": 8_000,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 65_536,
    # A topic that does not exist is told this soon after its first record (30,000 is the default), so that the sender can
    # say so; one that was just made and is not known to every broker yet is tried again by the sender.
    "topic.metadata.propagation.max.ms": 1_000,
    # The broker's and the topic's limits decide: a hand-off is a little larger than the record that came in. (At most the queue's size.)
    "message.max.bytes": 100_000_000,
}
_BULK = {"linger.ms": 5}
_ADMIN = {
    # A request that waits for one node asks for a connection to it whenever there is none, and librdkafka (2.16) makes that one at
    # once, without its backoff: while a node is down that is a loop which takes a whole processor. With connections to all nodes
    # the waiting request asks for none.
    "enable.sparse.connections": False,
}
_FIXED = frozenset(
    {
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.offset.reset",
        "enable.partition.eof",
        "enable.idempotence",
        "acks",
        "partitioner",
        "partition.assignment.strategy",
        "group.protocol",
        "group.id",
        "transactional.id",
        "transaction.timeout.ms",
        "bootstrap.servers",
    }
)


def chosen(client_settings: Mapping[str, str], role: str) -> dict[str, Any]:
    """The caller's settings for one role, prefixes removed; a `ConfigurationError` for one that is ours to set."""
    found: dict[str, Any] = {}
    for name, value in client_settings.items():
        prefix, _, rest = name.partition(".")
        if prefix in ROLES and prefix != role:
            continue
        plain = rest if prefix in ROLES else name
        if plain in _FIXED:
            raise ConfigurationError(f"client setting {plain!r} can't be changed: guarantees rest on it; remove it")
        found[plain] = value
    return found


def shared(client_settings: Mapping[str, str]) -> dict[str, Any]:
    """Those for every client alike (security above all), for clients that are of no single role, such as the schema log's."""
    return chosen(client_settings, "")


def consumer_settings(address: str, policy: ConsumerPolicy, client_settings: Mapping[str, str]) -> dict[str, Any]:
    """Properties of one group member."""
    if policy.protocol not in PROTOCOLS:
        raise ConfigurationError(f"protocol={policy.protocol!r} is unknown: use one of {', '.join(PROTOCOLS)}")
    if policy.drain_timeout_ms >= policy.max_poll_interval_ms:
        raise ConfigurationError(
            f"drain_timeout_ms={policy.drain_timeout_ms} must be below max_poll_interval_ms={policy.max_poll_interval_ms}: "
            "a member that drains does not poll"
        )
    settings: dict[str, Any] = {
        **_COMMON,
        **_FETCHING,
        "bootstrap.servers": address,
        "client.id": policy.client_id,
        "group.id": policy.group,
        "max.poll.interval.ms": policy.max_poll_interval_ms,
        "fetch.wait.max.ms": policy.fetch_wait_ms,
        "fetch.message.max.bytes": policy.fetch_partition_bytes,
        "queued.min.messages": policy.queued_records,
        "queued.max.messages.kbytes": max(1, policy.queued_bytes // 1024),
        "isolation.level": policy.isolation,
    }
    if policy.instance_id is not None:
        settings["group.instance.id"] = policy.instance_id
    if policy.protocol == "classic":
        settings["partition.assignment.strategy"] = "cooperative-sticky"
        settings["session.timeout.ms"] = policy.session_timeout_ms
        # Members learn of a rebalance by their next heartbeat, so this is also how long a clean hand-over takes.
        settings["heartbeat.interval.ms"] = max(1, min(1_000, policy.session_timeout_ms // 3))
    else:  # KIP-848: session timeout and heartbeats are the broker's to set, and refused from a client
        settings["group.protocol"] = "consumer"
    return settings | chosen(client_settings, "consumer")


_OF_MEMBERS = (
    "partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "group.protocol", "group.instance.id",
)  # fmt: skip


def lane_settings(member: Mapping[str, Any]) -> dict[str, Any]:
    """A group member's properties for the client beside it that fetches its lanes and never joins."""
    own = {name: value for name, value in member.items() if name not in _OF_MEMBERS}
    # A lane has records ahead in memory: what matters is that hundreds of quiet partitions are not asked for all the time.
    wait_ms = max(50, member["fetch.wait.max.ms"])
    return own | {
        "client.id": f"{member['client.id']}-lanes",
        "max.poll.interval.ms": 86_400_000,
        "fetch.wait.max.ms": wait_ms,
        # A lane may end in offsets that hold no record (markers, aborted records): only its end tells that it was read to there.
        "enable.partition.eof": True,
    }


def reader_settings(address: str, client_id: str, client_settings: Mapping[str, str]) -> dict[str, Any]:
    """Properties of a consumer that never joins or commits (librdkafka wants a group name all the same)."""
    return {
        **_COMMON,
        **_FETCHING,
        "bootstrap.servers": address,
        "client.id": client_id,
        "group.id": f"{client_id}.reader",
        "fetch.wait.max.ms": 10,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
    } | chosen(client_settings, "consumer")


def producer_settings(
    address: str, client_id: str, client_settings: Mapping[str, str], bulk: bool = False
) -> dict[str, Any]:
    """Properties of a producer; `bulk` fills its batches before it sends them."""
    own = {name: value for name, value in _COMMON.items() if name != "allow.auto.create.topics"}
    made: dict[str, Any] = {
        **own,
        **_PRODUCING,
        **(_BULK if bulk else {}),
        "bootstrap.servers": address,
        "client.id": client_id,
    } | chosen(client_settings, "producer")
    with contextlib.suppress(ValueError):  # no number: librdkafka says so
        # Of a record that the queue never has room for librdkafka says that the queue is full, and it would be sent again for ever.
        queue_bytes = 1024 * int(made["queue.buffering.max.kbytes"])
        made["message.max.bytes"] = min(int(made["message.max.bytes"]), queue_bytes)
    return made


def transaction_settings(address: str, policy: TransactionPolicy, client_settings: Mapping[str, str]) -> dict[str, Any]:
    """Properties of a transactional producer: nothing of it may take longer than its transaction."""
    own = producer_settings(address, policy.client_id, client_settings)
    del own["delivery.timeout.ms"]
    return own | {
        "transactional.id": policy.transactional_id,
        "transaction.timeout.ms": policy.timeout_ms,
        "socket.timeout.ms": min(int(own["socket.timeout.ms"]), policy.timeout_ms),
        # A connection that goes is news here: see `pipeline.kafka.transactions`.
        "log.connection.close": True,
        "debug": "broker",
    }


def admin_settings(address: str, client_settings: Mapping[str, str]) -> dict[str, Any]:
    own = {name: value for name, value in _COMMON.items() if name != "allow.auto.create.topics"}
    return {**own, **_ADMIN, "bootstrap.servers": address, "client.id": "pipeline-admin", "log_level": 2} | chosen(
        client_settings, "admin"
    )
