"""Locked files from the user's cache, or from a Maven repository into it, through `jgo`.

Only jgo's lowest layer is used (one artifact -> one file): its environments would look for a JDK elsewhere.
Files are downloaded aside, compared with the lock, and moved into the cache whole, so a cache never holds
half a file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.kafka.embedded.lock import LockedArtifact, is_intact, verify
from pipeline.model.errors import BrokerStartError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all), from several threads but never twice at once.
"""

_PARALLEL_DOWNLOADS = 6
_REQUEST_TIMEOUT_S = 30


def default_cache_dir() -> Path:
    """The user's cache; holds the jars and what is derived from them, and can be deleted at any time."""
    return Path.home() / ".cache" / "agent-run-pipeline"


@contextmanager
def exclusive(cache_dir: Path, name: str) -> Iterator[None]:
    """One process at a time fills a part of the cache; others wait and find it filled."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def obtain(
    artifacts: Sequence[LockedArtifact],
    cache_dir: Path,
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Paths of all the locked files, each checked against its sha256. No network when all are in the cache.

    `mirror` is the base URL of a Maven repository to use instead of Maven Central.
    Raises `BrokerStartError` when a file can't be had or is not the locked one.
    """
    store = cache_dir / "maven"
    if _missing(artifacts, store):
        with exclusive(cache_dir, "maven"):
            if missing := _missing(artifacts, store):
                _download(missing, store, mirror, progress)
    return [store / each.path for each in artifacts]


def _missing(artifacts: Sequence[LockedArtifact], store: Path) -> list[LockedArtifact]:
    return [each for each in artifacts if not is_intact(each, store / each.path)]


class _Meter:
    """Adds up the bytes of parallel downloads and reports them one call at a time.

    A server that sends no length makes jgo report nothing for the file: what is missing is added at its end.
    """

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self._of_file: dict[str, int] = {}
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()

    @contextmanager
    def chunks(self, name: str, _size_bytes: int) -> Iterator[Callable[[int], None]]:
        """jgo's form of a progress callback."""
        yield lambda count: self._set(name, self._of_file.get(name, 0) + count)

    def finished(self, name: str, size_bytes: int) -> None:
        self._set(name, size_bytes)

    def _set(self, name: str, done_bytes: int) -> None:
        with self._lock:
            self._of_file[name] = done_bytes
            if self._progress is not None:
                self._progress(f"downloading {name}", sum(self._of_file.values()), self._total_bytes)


def _download(missing: list[LockedArtifact], store: Path, mirror: str | None, progress: Progress | None) -> None:
    from jgo.maven import MavenContext, PythonResolver  # slow import

    store.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
    meter = _Meter(sum(each.size_bytes for each in missing), progress)
    context = MavenContext(
        resolver=PythonResolver(progress_callback=meter.chunks),
        repo_cache=staging,
        remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
        timeout=_REQUEST_TIMEOUT_S,
    )

    def fetch(each: LockedArtifact) -> None:
        component = context.project(each.group, each.artifact).at_version(each.version)
        try:
            file = component.artifact(each.classifier, each.packaging).resolve()
        except (OSError, RuntimeError, AssertionError) as error:
            raise BrokerStartError(_cannot_download(each, mirror, error)) from error
        verify(each, file)
        meter.finished(each.path.name, each.size_bytes)
        target = store / each.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)

    try:
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="jars") as pool:
            pending = [pool.submit(fetch, each) for each in missing]
            try:
                for each in pending:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _cannot_download(each: LockedArtifact, mirror: str | None, error: BaseException) -> str:
    source = f"the mirror {mirror}" if mirror else "Maven Central"
    return (
        f"{each.coordinates} is not in the cache and could not be downloaded from {source} "
        f"({type(error).__name__}); check the network, "
        "or set PIPELINE_MAVEN_MIRROR to a reachable Maven repository."
    )
