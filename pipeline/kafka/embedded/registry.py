"""Apicurio Registry as a child of this process: a Confluent-compatible registry on the same Java runtime."""

from __future__ import annotations

import http.client
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.kafka.embedded.jars import Progress, default_cache_dir, exclusive, obtain
from pipeline.kafka.embedded.jvm import Jvm, last_words
from pipeline.kafka.embedded.lock import digest, load_lock
from pipeline.kafka.embedded.ports import answers, free_ports
from pipeline.kafka.embedded.properties import HOST
from pipeline.model.errors import BrokerStartError

_PATH = "/apis/ccompat/v7"
_POLL_S = 0.05
_HTTP_OK = 200


class EmbeddedRegistry:
    """Schemas are kept in a file, so `stop()` then `start()` gives the same registry on the same port.

    `data_dir=None` means a temporary directory, removed by `close()` or at the end of the `with` block (and
    when this process dies). The first start downloads 159 MB into the cache.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        port: int | None = None,
        heap_mb: int = 256,
        cache_dir: Path | None = None,
        mirror: str | None = None,
    ) -> None:
        self.port = port or free_ports(1)[0]
        self._temporary = data_dir is None
        self._data_dir = data_dir
        self._heap_mb = heap_mb
        self._cache_dir = cache_dir or default_cache_dir()
        self._mirror = mirror
        self._jvm: Jvm | None = None

    @property
    def url(self) -> str:
        """What a Confluent client takes as `schema.registry.url`."""
        return f"http://{HOST}:{self.port}{_PATH}"

    @property
    def pid(self) -> int | None:
        """The JVM's process id while it runs."""
        return self._jvm.pid if self._jvm is not None and self._jvm.alive else None

    def start(self, progress: Progress | None = None, timeout_s: float = 120.0) -> None:
        """Returns when the registry answers. Raises `BrokerStartError`; nothing is left running then."""
        if self.pid is not None:
            return
        application = self.prepare(progress)
        home = self._home()
        home.mkdir(parents=True, exist_ok=True)
        log = home / "registry.log"
        log.unlink(missing_ok=True)
        self._jvm = Jvm(
            [
                f"-Xmx{self._heap_mb}m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",  # few requests: a fast start is worth more than peak speed
                f"-Djava.io.tmpdir={home}",
                f"-Dquarkus.http.host={HOST}",
                f"-Dquarkus.http.port={self.port}",
                # Its management interface would take port 9000 on every address, so a second registry could not start.
                f"-Dquarkus.management.host={HOST}",
                "-Dquarkus.management.port=0",
                "-Dquarkus.log.level=WARN",
                "-Dapicurio.storage.kind=sql",
                "-Dapicurio.storage.sql.kind=h2",
                f"-Dapicurio.datasource.url=jdbc:h2:file:{home / 'registry'}",
                "-jar",
                str(application / "quarkus-run.jar"),
            ],
            log,
            remove_when_orphaned=home if self._temporary else None,
        )
        try:
            self._await(self._jvm, time.monotonic() + timeout_s)
        except BaseException:
            self.stop(timeout_s=0)
            raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server and keep its schemas and port. Harmless twice."""
        if self._jvm is not None:
            self._jvm.stop(timeout_s)
            self._jvm = None

    def close(self) -> None:
        """Stop, and remove a temporary data directory."""
        self.stop()
        if self._temporary and self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _home(self) -> Path:
        if self._data_dir is None:
            self._data_dir = Path(tempfile.mkdtemp(prefix="pipeline-registry-"))
        return self._data_dir.expanduser().resolve()

    def prepare(self, progress: Progress | None = None) -> Path:
        """Fill the cache and check it against the lock; the folder of the unpacked application."""
        lock = load_lock("apicurio")
        unpacked = self._cache_dir / "apicurio" / digest(lock)
        if unpacked.is_dir():
            return unpacked
        [archive] = obtain(lock, self._cache_dir, mirror=self._mirror, progress=progress)
        with exclusive(self._cache_dir, "apicurio"):
            if not unpacked.is_dir():
                unpacked.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".staging-", dir=unpacked.parent) as staging:
                    content = Path(staging) / "content"
                    with tarfile.open(archive) as tar:
                        if hasattr(tarfile, "data_filter"):  # not in the first 3.11 releases
                            tar.extraction_filter = tarfile.data_filter
                        tar.extractall(content)
                    os.replace(content, unpacked)
        return unpacked

    def _await(self, jvm: Jvm, deadline: float) -> None:
        while not (answers(self.port) and self._serves()):
            if not jvm.alive:
                raise BrokerStartError(f"The registry ended while starting; its log says: {last_words(jvm.log)}")
            if time.monotonic() > deadline:
                raise BrokerStartError(f"The registry did not answer in time; its log says: {last_words(jvm.log)}")
            time.sleep(_POLL_S)

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", f"{_PATH}/subjects")
            return connection.getresponse().status == _HTTP_OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
