"""The embedded broker is a real Kafka: it takes records, loses a node, keeps its data, and never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from pipeline.model.errors import BrokerStartError
from tests.integration.processes import ended
from tests.patience import PATIENCE

pytestmark = pytest.mark.first

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0 * PATIENCE


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def create(bootstrap: str, topic: str, replicas: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 2, replicas)])[topic].result(DEADLINE_S)


def write(bootstrap: str, topic: str, values: list[bytes]) -> None:
    """acks=all; fails when one record is not acknowledged."""
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "delivery.timeout.ms": 30_000, "log_level": 0})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(DEADLINE_S) == 0
    assert not failed


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"{topic}.readers", "auto.offset.reset": "earliest",
         "log_level": 0}
    )  # fmt: skip
    consumer.subscribe([topic])
    found: list[bytes] = []
    try:

        def enough() -> bool:
            for message in consumer.consume(count, 0.2):
                assert message.error() is None
                found.append(message.value() or b"")
            return len(found) >= count

        eventually(enough, f"{count} records of {topic}")
    finally:
        consumer.close()
    return sorted(found)


VALUES = [b"%03d" % i for i in range(100)]


def test_records_go_through_the_run_broker(kafka: str, topic_name: str) -> None:
    create(kafka, topic_name)
    write(kafka, topic_name, VALUES)
    assert read(kafka, topic_name, len(VALUES)) == VALUES


def test_stop_ends_the_server_and_removes_a_temporary_directory() -> None:
    broker = EmbeddedBroker()
    with pytest.raises(BrokerStartError, match="not started"):
        _ = broker.bootstrap
    broker.start()
    [pid], directory = broker.node_pids.values(), broker.data_dir
    assert directory.is_dir()
    with pytest.raises(BrokerStartError, match="already started"):
        broker.start()
    broker.stop()
    broker.stop()
    assert ended(pid)
    assert not directory.exists()


def test_a_data_dir_survives_a_restart_at_the_same_address(tmp_path: Path) -> None:
    spec = BrokerSpec(data_dir=tmp_path / "kafka")
    with EmbeddedBroker(spec) as broker:
        address = broker.bootstrap
        create(address, "kept")
        write(address, "kept", VALUES)
    with EmbeddedBroker(spec) as broker:
        assert broker.bootstrap == address
        assert read(address, "kept", len(VALUES)) == VALUES


def test_three_nodes_with_one_killed_still_take_acks_all(kafka3: EmbeddedBroker, topic_name: str) -> None:
    create(kafka3.bootstrap, topic_name, replicas=3)
    write(kafka3.bootstrap, topic_name, VALUES[:50])
    killed = kafka3.node_pids[2]
    kafka3.kill_node(2)
    assert ended(killed)
    assert set(kafka3.node_pids) == {1, 3}
    write(kafka3.bootstrap, topic_name, VALUES[50:])
    assert read(kafka3.bootstrap, topic_name, len(VALUES)) == VALUES
    kafka3.start_node(2)
    kafka3.start_node(2)
    assert set(kafka3.node_pids) == {1, 2, 3}
    with pytest.raises(BrokerStartError, match="no node 4"):
        kafka3.kill_node(4)


def test_a_setting_kafka_refuses_is_quoted_from_its_log() -> None:
    broker = EmbeddedBroker(BrokerSpec(extra={"num.io.threads": "many"}))
    with pytest.raises(BrokerStartError, match=r"num\.io\.threads") as caught:
        broker.start()
    assert "\n" not in str(caught.value)
    assert not broker.node_pids


def test_a_full_cache_needs_no_network(kafka: str) -> None:
    """In a process whose every way out (mirror, proxies) is a closed port, and whose sockets refuse other hosts."""
    program = """
        import socket
        real = socket.socket.connect
        def connect(self, address):
            assert address[0] == "127.0.0.1", f"reached out to {address}"
            return real(self, address)
        socket.socket.connect = connect
        from pipeline.kafka.embedded import EmbeddedBroker
        with EmbeddedBroker(mirror="http://127.0.0.1:9") as broker:
            print(broker.bootstrap)
    """
    dead = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    with EmbeddedBroker() as filled:  # the cache is complete from here on, whichever broker the run uses
        assert filled.bootstrap
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT, env={**os.environ, **dead}, capture_output=True, text=True, timeout=120 * PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("127.0.0.1:")


OWNER = """
    import multiprocessing, os, sys, time
    from pipeline.kafka.embedded import EmbeddedBroker
    broker = EmbeddedBroker()
    broker.start()
    child = 0
    if sys.argv[1] == "forked":
        child = os.fork()          # keeps every descriptor of its parent, the guardian's pipe too
        if child == 0:
            time.sleep(120)
            os._exit(0)
    print(broker.node_pids[1], child, broker.data_dir, flush=True)
    time.sleep(120)
"""


class Owner:
    """Another process that started a broker."""

    def __init__(self, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(OWNER), mode],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        pid, child, self.directory = self.process.stdout.readline().split()
        self.jvm, self.child = int(pid), int(child)

    def end(self) -> None:
        for pid in (self.child, self.jvm):
            if pid and not ended(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def owners() -> Iterator[Callable[[str], Owner]]:
    made: list[Owner] = []

    def make(mode: str) -> Owner:
        made.append(Owner(mode))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.mark.parametrize("mode", ["alone", "forked", "stopped"])
def test_sigkill_of_the_parent_leaves_no_jvm_and_no_files(owners: Callable[[str], Owner], mode: str) -> None:
    owner = owners(mode)
    assert not ended(owner.jvm)
    if mode == "stopped":
        os.kill(owner.jvm, signal.SIGSTOP)
    owner.process.kill()
    owner.process.wait()
    eventually(lambda: ended(owner.jvm), "the JVM ended after its owner", 10)
    eventually(lambda: not Path(owner.directory).exists(), "its temporary directory is removed", 10)


def test_ctrl_c_in_the_terminal_does_not_reach_the_broker(owners: Callable[[str], Owner]) -> None:
    """A terminal signals the whole foreground group; workers must be able to drain before the broker goes."""
    owner = owners("alone")
    assert os.getpgid(owner.jvm) != os.getpgid(owner.process.pid)
    assert os.getsid(owner.jvm) != os.getsid(owner.process.pid)
