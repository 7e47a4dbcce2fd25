"""A real Apache Kafka cluster of 1 or 3 nodes as a child of this process: no Docker, no Java installed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.kafka.embedded.jars import Progress, default_cache_dir, obtain
from pipeline.kafka.embedded.jvm import Jvm, last_words
from pipeline.kafka.embedded.layout import Layout, lay_out
from pipeline.kafka.embedded.lock import digest, load_lock
from pipeline.kafka.embedded.ports import answers
from pipeline.kafka.embedded.properties import HOST, BrokerSpec, log4j_text, node_properties, properties_text
from pipeline.kafka.embedded.storage import prepare, template
from pipeline.model.errors import BrokerStartError

_POLL_S = 0.02
_METADATA_TIMEOUT_S = 2.0
_PORT_ATTEMPTS = 3


class _PortTaken(BrokerStartError):
    """Another process took a port between our choice and the server's bind."""


class EmbeddedBroker:
    """Start and stop a cluster, and kill or restart its nodes by Kafka's `node.id` (1, 2, 3).

    `cache_dir` holds the jars (default: the user's cache); `mirror` is a Maven repository to use instead of Central; `lock`
    names the files that make the server (`kafka-3.9`: the newest before 4, for tests). The JVMs end with this process, even
    when it is SIGKILLed; a temporary data directory is then removed too.
    """

    def __init__(
        self,
        spec: BrokerSpec | None = None,
        *,
        cache_dir: Path | None = None,
        mirror: str | None = None,
        lock: str = "kafka",
    ) -> None:
        self.spec = spec or BrokerSpec()
        self._cache_dir = cache_dir or default_cache_dir()
        self._mirror = mirror
        self._lock = lock
        self._jars: list[Path] = []
        self._layout: Layout | None = None
        self._nodes: dict[int, Jvm] = {}

    @property
    def bootstrap(self) -> str:
        """`host:port[,host:port...]` of all nodes. Raises `BrokerStartError` before the start."""
        return ",".join(f"{HOST}:{each.broker}" for each in self._started().ports)

    @property
    def node_pids(self) -> Mapping[int, int]:
        """node.id -> process id of the JVMs that run now."""
        return {node_id: jvm.pid for node_id, jvm in self._nodes.items() if jvm.alive}

    @property
    def data_dir(self) -> Path:
        """The directory with every node's data and server.log."""
        return self._started().root

    def prepare(self, progress: Progress | None = None) -> Path:
        """Fill the cache and check it against the lock; the formatted directory that nodes start from."""
        lock = load_lock(self._lock)
        self._jars = obtain(lock, self._cache_dir, mirror=self._mirror, progress=progress)
        return template(self._cache_dir, self._jars, digest(lock))

    def start(self, progress: Progress | None = None) -> None:
        """Returns when every node answers a metadata request that lists all nodes.

        The first start downloads 45 MB into the cache and tells `progress`. Raises `BrokerStartError`
        (nothing is left running) or `ConfigurationError`.
        """
        if self._layout is not None:
            raise BrokerStartError("The embedded broker is already started; stop it before starting it again.")
        formatted = self.prepare(progress)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start_all(formatted)
                return
            except _PortTaken:
                self.stop(timeout_s=0)
                if self.spec.port is not None or attempt == _PORT_ATTEMPTS:
                    raise
            except BaseException:
                self.stop(timeout_s=0)
                raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop all nodes: cleanly within the time where data is kept, at once where it is removed. Harmless
        twice.
        """
        if self._layout is None:
            return
        layout, nodes = self._layout, list(self._nodes.values())
        self._layout, self._nodes = None, {}
        deadline = time.monotonic() + timeout_s
        if not layout.temporary:
            for jvm in nodes:
                jvm.terminate()
            for jvm in nodes:
                jvm.wait(max(deadline - time.monotonic(), 0))
        for jvm in nodes:
            jvm.kill()
        if layout.temporary:
            shutil.rmtree(layout.root, ignore_errors=True)

    def kill_node(self, node_id: int) -> None:
        """SIGKILL that node. Its data stays for `start_node`."""
        self._node(node_id).kill()

    def start_node(self, node_id: int) -> None:
        """Start a killed node on its old ports and data; returns when it lists itself. Harmless when it runs."""
        layout = self._started()
        if self._node(node_id).alive:
            return
        self._launch(node_id)
        self._await_node(layout, node_id, {node_id}, time.monotonic() + self.spec.start_timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started(self) -> Layout:
        if self._layout is None:
            raise BrokerStartError("The embedded broker is not started; call start() first.")
        return self._layout

    def _node(self, node_id: int) -> Jvm:
        self._started()
        try:
            return self._nodes[node_id]
        except KeyError:
            raise BrokerStartError(f"There is no node {node_id}; choose one of 1..{self.spec.nodes}.") from None

    def _start_all(self, formatted: Path) -> None:
        layout = self._layout = lay_out(self.spec)
        everyone = set(range(1, self.spec.nodes + 1))
        for node_id in everyone:
            prepare(layout.node_dir(node_id) / "log", formatted, layout.cluster_id, node_id)
            self._launch(node_id)
        deadline = time.monotonic() + self.spec.start_timeout_s
        for node_id in everyone:
            self._await_node(layout, node_id, everyone, deadline)

    def _launch(self, node_id: int) -> None:
        layout = self._started()
        home = layout.node_dir(node_id)
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        config, logging = home / "server.properties", home / "log4j2.properties"
        properties = node_properties(self.spec, node_id, layout.ports, home / "log")
        config.write_text(properties_text(properties), encoding="utf-8")
        logging.write_text(log4j_text(self.spec.log_level), encoding="utf-8")
        arguments = [
            f"-Xmx{self.spec.heap_mb}m",
            "-XX:+UseG1GC",  # at 1,000 records/s the serial one stops everything for 15 ms every 1.4 s, this one for half as long
            "-XX:TieredStopAtLevel=1",  # 2 cores: starts faster, a third less CPU, no less throughput
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={home / 'tmp'}",
            f"-Dlog4j2.configurationFile={logging}",
            "-cp", os.pathsep.join(map(str, self._jars)),
            "kafka.Kafka", str(config),
        ]  # fmt: skip
        log = layout.server_log(node_id)
        log.unlink(missing_ok=True)
        self._nodes[node_id] = Jvm(arguments, log, remove_when_orphaned=home if layout.temporary else None)

    def _await_node(self, layout: Layout, node_id: int, expected: set[int], deadline: float) -> None:
        port = layout.ports[node_id - 1].broker
        while not answers(port):
            self._check(layout, node_id, deadline)
            time.sleep(_POLL_S)
        from confluent_kafka import KafkaException  # slow import
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "log_level": 0})
        while True:
            try:
                if expected <= admin.list_topics(timeout=_METADATA_TIMEOUT_S).brokers.keys():
                    return
            except KafkaException:
                pass  # not serving yet, or the node died: the check below tells
            self._check(layout, node_id, deadline)
            time.sleep(_POLL_S)

    def _check(self, layout: Layout, node_id: int, deadline: float) -> None:
        """Raise when any node ended or the time is over."""
        for each, jvm in self._nodes.items():
            if each in (node_id, *range(1, node_id)) and not jvm.alive:
                words = last_words(layout.server_log(each))
                kind = _PortTaken if "Address already in use" in words else BrokerStartError
                raise kind(f"Node {each} of the embedded broker ended while starting; its log says: {words}")
        if time.monotonic() > deadline:
            words = last_words(layout.server_log(node_id))
            raise BrokerStartError(
                f"Node {node_id} of the embedded broker did not answer within "
                f"start_timeout_s={self.spec.start_timeout_s:.0f}; its log says: {words}"
            )
