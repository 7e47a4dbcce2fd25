"""The directory of an embedded cluster: one folder a node, and `cluster.json` with what must be the same next
time.

DIR/cluster.json               nodes, cluster id, ports
DIR/node-1/log/                Kafka's log.dirs
DIR/node-1/server.properties, log4j2.properties, server.log, tmp/
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.kafka.embedded.ports import free_ports, is_free
from pipeline.kafka.embedded.properties import BrokerSpec, NodePorts
from pipeline.kafka.embedded.storage import new_id
from pipeline.model.errors import BrokerStartError, ConfigurationError


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a cluster lives and listens."""

    root: Path
    cluster_id: str
    ports: tuple[NodePorts, ...]
    temporary: bool

    def node_dir(self, node_id: int) -> Path:
        return self.root / f"node-{node_id}"

    def server_log(self, node_id: int) -> Path:
        return self.node_dir(node_id) / "server.log"


def lay_out(spec: BrokerSpec) -> Layout:
    """The layout for this spec: the remembered one of `data_dir`, or a new one. Raises `ConfigurationError`
    when the
    directory belongs to a cluster of another size, `BrokerStartError` when the asked-for port is taken."""
    if spec.data_dir is None:
        ports = _choose_ports(spec, ())
        return Layout(Path(tempfile.mkdtemp(prefix="pipeline-broker-")), new_id(), ports, temporary=True)
    root = spec.data_dir.expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    cluster_id, known = _remembered(root, spec)
    layout = Layout(root, cluster_id, _choose_ports(spec, known), temporary=False)
    remembered = {
        "cluster_id": cluster_id,
        "nodes": spec.nodes,
        "ports": [asdict(each) for each in layout.ports],
    }
    (root / "cluster.json").write_text(json.dumps(remembered, indent=1) + "\n", encoding="utf-8")
    return layout


def _remembered(root: Path, spec: BrokerSpec) -> tuple[str, tuple[NodePorts, ...]]:
    file = root / "cluster.json"
    if not file.is_file():
        return new_id(), ()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        cluster_id, nodes = str(kept["cluster_id"]), int(kept["nodes"])
        ports = tuple(NodePorts(int(each["broker"]), int(each["controller"])) for each in kept["ports"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file} can't be read; remove the directory or choose another data_dir.") from error
    if nodes != spec.nodes:
        raise ConfigurationError(f"{root} holds a cluster of {nodes} node(s), not {spec.nodes}; use another data_dir.")
    return cluster_id, ports


def _choose_ports(spec: BrokerSpec, known: Sequence[NodePorts]) -> tuple[NodePorts, ...]:
    if spec.port is not None:
        brokers = [spec.port + i for i in range(spec.nodes)]
        for port in brokers:
            if not is_free(port):
                raise BrokerStartError(f"Port {port} is taken; choose another port, or leave it out to get a free one.")
        controllers = [port for port in free_ports(2 * spec.nodes) if port not in brokers][: spec.nodes]
        return tuple(map(NodePorts, brokers, controllers))
    if known and all(is_free(each.broker) and is_free(each.controller) for each in known):
        return tuple(known)
    free = free_ports(2 * spec.nodes)
    return tuple(map(NodePorts, free[: spec.nodes], free[spec.nodes :]))
