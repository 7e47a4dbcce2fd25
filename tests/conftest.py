"""Fixtures that give a test real Kafka: an address from PIPELINE_TEST_BROKER, else Docker, else the embedded
broker.

One broker serves the whole run, also under pytest-xdist: it belongs to the controlling process, which starts
it when the first test asks (a worker asks over a loopback socket) and stops it at the end. Tests keep apart
by `topic_name`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, settings

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker, EmbeddedRegistry
from pipeline.kafka.embedded.ports import free_ports
from pipeline.kafka.embedded.properties import NodePorts, node_properties
from tests.patience import PATIENCE
from tests.real_runs import require_real_runs
from tests.topics import forget_topics

_HOST = "127.0.0.1"
_FIRST_START_S = 300
_DOCKER_START_S = 120
_IMAGE = "apache/kafka:4.4.0"
_MIRROR = os.environ.get("PIPELINE_MAVEN_MIRROR")


def _docker_answers() -> bool:
    import docker  # type: ignore[import-untyped]
    from docker.errors import DockerException  # type: ignore[import-untyped]

    try:
        docker.from_env(timeout=3).ping()
    except DockerException:
        return False
    return True


def _await_metadata(bootstrap: str) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = time.monotonic() + _DOCKER_START_S
    while True:
        try:
            admin.list_topics(timeout=2)
            return
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{_IMAGE} did not answer at {bootstrap}") from error


class _RunBroker:
    """The run's broker: chosen at once, started on the first request, stopped once."""

    def __init__(self) -> None:
        self._given = os.environ.get("PIPELINE_TEST_BROKER", "")
        self.choice = "given by PIPELINE_TEST_BROKER" if self._given else "Docker" if _docker_answers() else "embedded"
        self._lock = threading.Lock()
        self._bootstrap = self._given
        self._stop: Callable[[], object] = lambda: None

    def bootstrap(self) -> str:
        with self._lock:
            if not self._bootstrap:
                self._bootstrap = self._start_docker() if self.choice == "Docker" else self._start_embedded()
            return self._bootstrap

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def _start_docker(self) -> str:
        """Apache's own image with the embedded broker's settings, as its KAFKA_* variables."""
        from testcontainers.core.container import DockerContainer

        broker, controller = free_ports(2)
        container = DockerContainer(_IMAGE).with_bind_ports(broker, broker)
        host = container.get_container_host_ip()
        settings = node_properties(BrokerSpec(), 1, [NodePorts(broker, controller)], PurePosixPath("/tmp/kafka"))
        settings["listeners"] = settings["listeners"].replace(f"PLAINTEXT://{_HOST}", "PLAINTEXT://0.0.0.0")
        settings["advertised.listeners"] = f"PLAINTEXT://{host}:{broker}"
        for name, value in settings.items():
            container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
        container.start()
        self._stop = container.stop
        bootstrap = f"{host}:{broker}"
        _await_metadata(bootstrap)
        return bootstrap

    def _start_embedded(self) -> str:
        broker = EmbeddedBroker(BrokerSpec(), mirror=_MIRROR)
        broker.start()
        self._stop = broker.stop
        return broker.bootstrap


class _BrokerDesk:
    """Answers xdist workers: one connection, one line with the bootstrap address or `!` and why there is
    none.
    """

    def __init__(self, broker: _RunBroker) -> None:
        self._broker = broker
        self._server = socket.create_server((_HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="broker-desk", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                try:
                    answer = self._broker.bootstrap()
                except Exception as error:  # whatever it is, the worker must hear of it
                    answer = f"!{error}"
                connection.sendall(f"{answer}\n".encode())

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


def _ask_desk(port: int) -> str:
    with socket.create_connection((_HOST, port), _FIRST_START_S) as connection:
        answer = connection.makefile(encoding="utf-8").readline().strip()
    if not answer or answer.startswith("!"):
        raise RuntimeError(answer[1:] or "the controlling pytest process ended")
    return answer


# Test processes share the processors with brokers: how long an example took says nothing about the code.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

# How long after its own time limit a test's process is ended: pytest-timeout raises in the main thread once, which does not
# reach a thread that waits inside a C library, nor a teardown that then waits for ever. A whole run stood still on that.
_GRACE_S = 90


class _TellsAtOnce:
    """Names a test when it has failed: a run that is ended from outside has said by then which ones did."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f" {report.when} failed: {report.nodeid}", red=True)


_STDERR = pytest.StashKey[int]()
_BROKER = pytest.StashKey[_RunBroker]()
_DESK = pytest.StashKey[_BrokerDesk]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "first: its file goes to a test process before all others, as it takes long")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so `make test &` starts, and what it starts inherits it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_STDERR] = os.dup(2)  # while it is not captured
    if hasattr(config, "workerinput"):
        return
    config.stash[_BROKER] = _RunBroker()
    config.pluginmanager.register(_TellsAtOnce(config))
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist starts with the files of most tests: we say so ourselves, below


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test's time limit is that of an idle machine; put before its own markers, as the first one counts."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(limit_s * PATIENCE), append=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that outlives its limit shows where each thread stands and ends its process; xdist reports it and goes on in a new one."""
    marker = item.get_closest_marker("timeout")
    assert marker, "each was given one"
    _end_process_after(marker.args[0] + _GRACE_S, item.config)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """A failure ends pytest's own and so our timer; the teardown that follows needs one."""
    if isinstance(node, pytest.Item):
        _end_process_after(_GRACE_S, node.config)


def _end_process_after(seconds: float, config: pytest.Config) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_STDERR])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For several processes: files with a test marked `first`, those of few long tests before others, then those of most tests.

    Alone, the order stays.
    """
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    first = {item.path for item in items if item.get_closest_marker("first")}

    def rank(item: pytest.Item) -> tuple[bool, int, str]:
        count = tests[item.path]
        return item.path not in first, count if item.path in first else -count, str(item.path)

    items.sort(key=rank)


def pytest_unconfigure(config: pytest.Config) -> None:
    if desk := config.stash.get(_DESK, None):
        desk.close()
    if broker := config.stash.get(_BROKER, None):
        broker.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """xdist, in the controller: tell a new worker where to ask."""
    stash: pytest.Stash = node.config.stash  # type: ignore[attr-defined]
    if _DESK not in stash:
        stash[_DESK] = _BrokerDesk(stash[_BROKER])
    node.workerinput["pipeline_broker_desk"] = stash[_DESK].port  # type: ignore[attr-defined]


def pytest_report_header(config: pytest.Config) -> str | None:
    broker = config.stash.get(_BROKER, None)
    return f"kafka for tests: {broker.choice}" if broker else None


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """Bootstrap address of the run's broker. Topics are not created by themselves; sessions last 6 s."""
    workerinput = getattr(request.config, "workerinput", None)
    if workerinput is not None:
        return _ask_desk(workerinput["pipeline_broker_desk"])
    return request.config.stash[_BROKER].bootstrap()


@pytest.fixture(scope="module")
def kafka3() -> Iterator[EmbeddedBroker]:
    """A cluster of three nodes (replication 3, min ISR 2) whose nodes may be killed; start them again
    afterwards.
    """
    with EmbeddedBroker(BrokerSpec(nodes=3), mirror=_MIRROR) as broker:
        yield broker


@pytest.fixture(scope="session")
def registry_server() -> Iterator[EmbeddedRegistry]:
    """A Confluent-compatible registry (`.url`) that a test may stop and start."""
    with EmbeddedRegistry(mirror=_MIRROR) as registry:
        yield registry


@pytest.fixture(scope="session")
def real_runs() -> Path:
    """The file of 200 real runs. Without it the test is skipped, and in CI fails."""
    return require_real_runs()


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A topic name no other test and no other run uses. Topics with its last ten characters are deleted after the test."""
    readable = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-")
    own = uuid.uuid4().hex[:10]
    bootstrap = request.getfixturevalue("kafka") if "kafka" in request.fixturenames else ""
    yield f"t.{readable}.{own}"
    if bootstrap:
        forget_topics(bootstrap, own)
