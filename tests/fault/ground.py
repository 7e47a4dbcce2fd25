"""The ground that rows are tried on: three Kafka nodes, a proxy before each, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker, ProxiedPort
from pipeline.kafka.embedded.ports import free_ports
from tests.fault.proxies import Proxies
from tests.integration.waiting import until

HOST = "127.0.0.1"
NODES = (1, 2, 3)
USER, PASSWORD = "worker", "worker-secret"
LOGIN = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": USER,
    "sasl.password": PASSWORD,
}
"""Who comes through the proxies logs in, so that rows can take rights away from it; the direct listener may do everything."""
_EXTRA = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "leader.imbalance.check.interval.seconds": "1",
    "leader.imbalance.per.broker.percentage": "0",
    "super.users": "User:ANONYMOUS",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.proxied.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule required "
    f'user_{USER}="{PASSWORD}";',
}


class Ground:
    """`direct` is reached as it is; clients of `proxied` come through the proxies, also to what the cluster tells them."""

    def __init__(self, broker: EmbeddedBroker, proxies: Proxies, proxied: str) -> None:
        self.broker = broker
        self.proxies = proxies
        self.direct = broker.bootstrap
        self.proxied = proxied
        self.admin = AdminClient({"bootstrap.servers": self.direct, "log_level": 0})

    # -- nodes

    def kill(self, node: int) -> None:
        self.broker.kill_node(node)

    def start(self, node: int) -> None:
        self.broker.start_node(node)

    def restore(self) -> None:
        """All nodes run and are in sync, nothing is in the way of clients."""
        self.proxies.heal()
        for node in NODES:
            self.broker.start_node(node)
        until("every partition has three replicas in sync", self.in_sync, 90)

    def in_sync(self) -> bool:
        with contextlib.suppress(KafkaException):
            topics = self.admin.list_topics(timeout=5).topics.values()
            return all(len(p.isrs) == len(p.replicas) for topic in topics for p in topic.partitions.values())
        return False

    def leaders(self, topic: str) -> dict[int, int]:
        """Partition -> node; -1 while there is none."""
        while True:
            with contextlib.suppress(KafkaException):
                found = self.admin.list_topics(topic, timeout=5).topics[topic].partitions
                return {p: meta.leader for p, meta in found.items()}
            time.sleep(0.1)

    def coordinator(self, group: str) -> int:
        """A node; 0 while it moves. It is the leader of the partition in which the group's commits are (Java's hash of its name).

        The client's own call is not asked: it ended this process while a coordinator moved (librdkafka 2.16, eonce->refcnt > 0).
        """
        leaders, number = self.leaders("__consumer_offsets"), 0
        for each in group:
            number = (31 * number + ord(each)) & 0xFFFFFFFF
        return max(0, leaders[abs(number - (number >> 31 << 32)) % len(leaders)])

    def led_by_preferred(self, topics: Collection[str]) -> bool:
        """Are the leaders the first replicas again? The cluster elects them back, under load."""
        known = self.admin.list_topics(timeout=5).topics
        return all(p.leader == p.replicas[0] for name in topics for p in known[name].partitions.values())

    # -- rights

    def forbid_writes(self, topic: str) -> None:
        for operation, permission in (
            (AclOperation.ALL, AclPermissionType.ALLOW),
            (AclOperation.WRITE, AclPermissionType.DENY),
        ):
            rule = AclBinding(
                ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, permission
            )
            for future in self.admin.create_acls([rule]).values():
                future.result(10)

    def allow_writes(self, topic: str) -> None:
        rule = AclBindingFilter(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for future in self.admin.delete_acls([rule]).values():
            future.result(10)


@contextlib.contextmanager
def ground(**extra: str) -> Iterator[Ground]:
    """A cluster for some rows; nothing of it is left."""
    ports = free_ports(6)
    pairs = list(zip(ports[:3], ports[3:], strict=True))
    spec = BrokerSpec(
        nodes=3,
        start_timeout_s=240.0,
        proxied=tuple(ProxiedPort(behind, front) for front, behind in pairs),
        extra={**_EXTRA, **extra},
    )
    broker: Any = EmbeddedBroker(spec, mirror=os.environ.get("PIPELINE_MAVEN_MIRROR"))
    proxies = Proxies(pairs)
    try:
        with broker:
            yield Ground(broker, proxies, ",".join(f"{HOST}:{front}" for front, _ in pairs))
    finally:
        proxies.close()
