"""From a `BrokerSpec` to the text of each node's server.properties. Pure: same spec and ports, same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipeline.model.errors import ConfigurationError

HOST = "127.0.0.1"
NODE_COUNTS = (1, 3)
_LOG_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG")
_HEAP_MB_MIN = 128
_PORT_MAX = 65_535
_SESSION_MS_MIN = 1_000
_FIXED = ("node.id", "process.roles", "listeners", "log.dirs", "controller.quorum.voters")


@dataclass(frozen=True, slots=True)
class ProxiedPort:
    """Where a node listens for a proxy, and the port on loopback where clients find that proxy."""

    listens: int
    advertises: int


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """What kind of cluster to run: 1 or 3 nodes on loopback, each broker and controller in one.

    `data_dir=None` means a temporary directory that is removed at the stop. `port` is the first node's (the
    next nodes take the following ones); None picks free ports, the same again for a `data_dir` where they are
    still free. `extra` are server.properties that win over the ones set here. `group_session_timeout_ms` is
    how long a silent member of a KIP-848 group keeps its partitions. `proxied`: one more listener a node, for
    clients that come through a proxy; who reaches it is told the proxy's port. Raises `ConfigurationError`.
    """

    nodes: int = 1
    data_dir: Path | None = None
    port: int | None = None
    heap_mb: int = 512
    group_session_timeout_ms: int = 6_000
    start_timeout_s: float = 90.0
    log_level: str = "WARN"
    proxied: tuple[ProxiedPort, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes not in NODE_COUNTS:
            raise ConfigurationError(f"nodes={self.nodes} is not possible for the embedded broker; use 1 or 3.")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigurationError(f"log_level={self.log_level!r} is unknown; use one of {', '.join(_LOG_LEVELS)}.")
        if self.heap_mb < _HEAP_MB_MIN:
            raise ConfigurationError(f"heap_mb={self.heap_mb} is too small for Kafka; use {_HEAP_MB_MIN} or more.")
        if self.port is not None and not 0 < self.port <= _PORT_MAX - max(NODE_COUNTS):
            raise ConfigurationError(f"port={self.port} is not a usable port; leave it out to get a free one.")
        if self.group_session_timeout_ms < _SESSION_MS_MIN:
            raise ConfigurationError(
                f"group_session_timeout_ms={self.group_session_timeout_ms} is too short for heartbeats; "
                f"use {_SESSION_MS_MIN} or more."
            )
        if self.proxied and len(self.proxied) != self.nodes:
            raise ConfigurationError(
                f"proxied has {len(self.proxied)} port(s) for {self.nodes} node(s) of the embedded broker; give one a node."
            )
        for name in _FIXED:
            if name in self.extra:
                raise ConfigurationError(f"{name} is set by the embedded broker itself; leave it out of `extra`.")


@dataclass(frozen=True, slots=True)
class NodePorts:
    """One node's two listeners on loopback."""

    broker: int
    controller: int


def node_properties(spec: BrokerSpec, node_id: int, ports: Sequence[NodePorts], log_dir: PurePath) -> dict[str, str]:
    """server.properties of node `node_id` (1-based). `ports` are those of all nodes, in order."""
    own = ports[node_id - 1]
    voters = ",".join(f"{i}@{HOST}:{each.controller}" for i, each in enumerate(ports, start=1))
    listener = f"PLAINTEXT://{HOST}:{own.broker}"
    return {
        "node.id": str(node_id),
        "process.roles": "broker,controller",
        "listeners": f"{listener},CONTROLLER://{HOST}:{own.controller}",
        "advertised.listeners": listener,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": voters,
        "log.dirs": str(log_dir),
        **_replication(spec.nodes),
        **_timeouts(spec.group_session_timeout_ms),
        **_SMALL,
        **_proxied(spec, node_id, f"{listener},CONTROLLER://{HOST}:{own.controller}", listener),
        **spec.extra,
    }


def _proxied(spec: BrokerSpec, node_id: int, listeners: str, advertised: str) -> dict[str, str]:
    """A listener beside the plain one, which the nodes themselves and clients without a proxy go on using."""
    if not spec.proxied:
        return {}
    port = spec.proxied[node_id - 1]
    return {
        "listeners": f"{listeners},PROXIED://{HOST}:{port.listens}",
        "advertised.listeners": f"{advertised},PROXIED://{HOST}:{port.advertises}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
    }


def _replication(nodes: int) -> dict[str, str]:
    """Everything on every node; with three, one may die and acks=all still succeeds."""
    in_sync = "2" if nodes > 1 else "1"
    return {
        "default.replication.factor": str(nodes),
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": str(nodes),
        "transaction.state.log.replication.factor": str(nodes),
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": str(nodes),
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _timeouts(group_session_timeout_ms: int) -> dict[str, str]:
    """Seconds instead of Kafka's minutes, so that the work of a killed member or node moves while a test
    watches.
    """
    session = str(group_session_timeout_ms)
    heartbeat = str(max(group_session_timeout_ms // 6, 100))
    return {
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": session,
        "group.consumer.session.timeout.ms": session,
        "group.consumer.min.heartbeat.interval.ms": heartbeat,
        "group.consumer.heartbeat.interval.ms": heartbeat,
        "broker.session.timeout.ms": "6000",
        "broker.heartbeat.interval.ms": "500",
        "replica.lag.time.max.ms": "10000",
        "controller.quorum.election.backoff.max.ms": "200",
    }


_SMALL = {
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.num.partitions": "5",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "16777216",  # 128 MiB by default, taken from the heap at the start
}
"""One machine, one user: fewer partitions, threads and buffers than a production broker would have."""


def properties_text(properties: Mapping[str, str]) -> str:
    """Java properties, sorted; backslashes doubled as the format wants them, line breaks refused."""
    lines = []
    for name, value in sorted(properties.items()):
        if "\n" in name + value or "\r" in name + value:
            raise ConfigurationError(f"The value of {name} has a line break, which server.properties can't hold.")
        escaped = value.replace("\\", "\\\\")
        lines.append(f"{name}={escaped}\n")
    return "".join(lines)


def log4j_text(level: str) -> str:
    """Logs to standard output, which the guardian writes to the node's file."""
    return properties_text(
        {
            "status": "ERROR",
            "appender.out.type": "Console",
            "appender.out.name": "OUT",
            "appender.out.layout.type": "PatternLayout",
            "appender.out.layout.pattern": "%d{HH:mm:ss.SSS} %-5p %m (%c{1})%n",
            "rootLogger.level": level,
            "rootLogger.appenderRef.out.ref": "OUT",
        }
    )
