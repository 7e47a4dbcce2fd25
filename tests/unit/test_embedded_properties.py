"""From a BrokerSpec to server.properties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.kafka.embedded.jvm import last_words
from pipeline.kafka.embedded.layout import lay_out
from pipeline.kafka.embedded.ports import answers, free_ports, is_free
from pipeline.kafka.embedded.properties import BrokerSpec, NodePorts, ProxiedPort, node_properties, properties_text
from pipeline.model.errors import BrokerStartError, ConfigurationError

ONE = (NodePorts(21001, 21002),)
THREE = tuple(NodePorts(21001 + i, 21011 + i) for i in range(3))
DIR = Path("/data/log")


def test_one_node() -> None:
    made = node_properties(BrokerSpec(), 1, ONE, DIR)
    assert made["listeners"] == "PLAINTEXT://127.0.0.1:21001,CONTROLLER://127.0.0.1:21002"
    assert made["controller.quorum.voters"] == "1@127.0.0.1:21002"
    assert made["log.dirs"] == "/data/log"
    assert made["min.insync.replicas"] == made["offsets.topic.replication.factor"] == "1"
    assert made["auto.create.topics.enable"] == "false"


def test_three_nodes_tolerate_one_loss() -> None:
    made = [node_properties(BrokerSpec(nodes=3), i, THREE, DIR) for i in (1, 2, 3)]
    assert [each["node.id"] for each in made] == ["1", "2", "3"]
    assert {each["controller.quorum.voters"] for each in made} == {
        "1@127.0.0.1:21011,2@127.0.0.1:21012,3@127.0.0.1:21013"
    }
    for each in made:
        for topic in ("default", "offsets.topic", "transaction.state.log"):
            assert each[f"{topic}.replication.factor"] == "3"
        assert each["min.insync.replicas"] == each["transaction.state.log.min.isr"] == "2"
    assert made[1]["advertised.listeners"] == "PLAINTEXT://127.0.0.1:21002"


def test_group_sessions_are_seconds_with_several_heartbeats_in_one() -> None:
    made = node_properties(BrokerSpec(), 1, ONE, DIR)
    assert made["group.consumer.session.timeout.ms"] == made["group.consumer.min.session.timeout.ms"] == "6000"
    assert int(made["group.consumer.heartbeat.interval.ms"]) * 3 <= 6000
    assert made["group.initial.rebalance.delay.ms"] == "0"
    longer = node_properties(BrokerSpec(group_session_timeout_ms=20_000), 1, ONE, DIR)
    assert longer["group.consumer.session.timeout.ms"] == "20000"


def test_extra_wins_but_not_over_identity() -> None:
    spec = BrokerSpec(extra={"num.io.threads": "9", "message.max.bytes": "77"})
    made = node_properties(spec, 1, ONE, DIR)
    assert (made["num.io.threads"], made["message.max.bytes"]) == ("9", "77")
    with pytest.raises(ConfigurationError, match=r"log\.dirs is set by the embedded broker"):
        BrokerSpec(extra={"log.dirs": "/elsewhere"})


@pytest.mark.parametrize(
    ("change", "named"),
    [({"nodes": 2}, "nodes=2"), ({"nodes": 0}, "nodes=0"), ({"port": 70_000}, "port=70000"), ({"port": 0}, "port=0"),
     ({"heap_mb": 10}, "heap_mb=10"), ({"log_level": "LOUD"}, "log_level='LOUD'"),
     ({"group_session_timeout_ms": 10}, "group_session_timeout_ms=10")],
)  # fmt: skip
def test_bad_specs_name_the_setting(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        replace(BrokerSpec(), **change)  # type: ignore[arg-type]


def test_text_is_sorted_and_escaped() -> None:
    assert properties_text({"b": "x", "a": "C:\\tmp"}) == "a=C:\\\\tmp\nb=x\n"
    with pytest.raises(ConfigurationError, match="line break"):
        properties_text({"a": "x\nb=injected"})


def test_free_ports_are_distinct_and_below_the_outgoing_range() -> None:
    found = free_ports(6)
    assert len(set(found)) == 6
    assert all(20_000 <= port <= 32_000 and is_free(port) and not answers(port) for port in found)


def test_a_data_dir_keeps_its_id_and_ports(tmp_path: Path) -> None:
    spec = BrokerSpec(data_dir=tmp_path / "kept")
    first, second = lay_out(spec), lay_out(spec)
    assert not first.temporary
    assert first == second
    with pytest.raises(ConfigurationError, match=r"holds a cluster of 1 node\(s\), not 3"):
        lay_out(replace(spec, nodes=3))
    (spec.data_dir or tmp_path).joinpath("cluster.json").write_text("{]")
    with pytest.raises(ConfigurationError, match=r"cluster\.json can't be read"):
        lay_out(spec)


def test_a_taken_port_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerStartError, match=f"Port {port} is taken"):
            lay_out(BrokerSpec(port=port, data_dir=tmp_path))


def test_last_words_are_the_errors_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert "no log" in last_words(log)
    log.write_text("12:00 INFO fine\n12:01 ERROR disk \x1b[31mgone (x)\n\tat a.b.C(D.java:1)\n12:02 INFO bye\n")
    assert last_words(log) == "12:01 ERROR disk  [31mgone (x)"


def test_a_proxied_listener_stands_beside_the_plain_one_and_tells_the_proxys_port() -> None:
    spec = BrokerSpec(nodes=3, proxied=tuple(ProxiedPort(21021 + i, 21031 + i) for i in range(3)))
    made = node_properties(spec, 2, THREE, DIR)
    assert made["listeners"] == "PLAINTEXT://127.0.0.1:21002,CONTROLLER://127.0.0.1:21012,PROXIED://127.0.0.1:21022"
    assert made["advertised.listeners"] == "PLAINTEXT://127.0.0.1:21002,PROXIED://127.0.0.1:21032"
    assert "PROXIED:PLAINTEXT" in made["listener.security.protocol.map"]
    assert made["inter.broker.listener.name"] == "PLAINTEXT"
    with pytest.raises(ConfigurationError, match=r"proxied has 1 port\(s\) for 3 node"):
        BrokerSpec(nodes=3, proxied=(ProxiedPort(1, 2),))
