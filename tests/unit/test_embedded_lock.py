"""Only locked bytes are used: the lock's form, its verification, the cache, the mirror."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.kafka.embedded.jars import obtain
from pipeline.kafka.embedded.lock import LockedArtifact, digest, load_lock, parse_lock, verify
from pipeline.model.errors import BrokerStartError

DATA = b"the bytes of a jar" * 1000


def locked(data: bytes = DATA, name: str = "thing") -> LockedArtifact:
    return LockedArtifact("org.example", name, "1.0", "", "jar", hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("name", ["kafka", "kafka-3.9", "apicurio"])
def test_shipped_locks_are_complete(name: str) -> None:
    lock = load_lock(name)
    assert lock
    assert len({each.path for each in lock}) == len(lock)
    for each in lock:
        assert len(bytes.fromhex(each.sha256)) == 32
        assert each.size_bytes > 0


@pytest.mark.parametrize(("name", "version"), [("kafka", "4.4.0"), ("kafka-3.9", "3.9.2")])
def test_a_kafka_lock_has_one_version_of_kafka(name: str, version: str) -> None:
    """A parent POM of the logging bridge can put kafka-clients 3.9 beside the 4.4 server."""
    versions = {each.version for each in load_lock(name) if each.group == "org.apache.kafka"}
    assert versions == {version}
    names = [(each.group, each.artifact) for each in load_lock(name)]
    assert len(names) == len(set(names)), "one artifact in two versions"


def test_a_line_reads_back() -> None:
    plain = locked()
    archive = LockedArtifact("org.example", "app", "2", "all", "tar.gz", "ab" * 32, 7)
    assert parse_lock(f"# head\n{plain.line()}\n\n{archive.line()}  # why\n") == (plain, archive)
    assert archive.path == Path("org/example/app/2/app-2-all.tar.gz")


@pytest.mark.parametrize("line", ["a:b sha 1", "a:b:1 sha", "a:b:1 sha ten", "a:b:1:c sha 1"])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(BrokerStartError, match="Line 2 of the lock"):
        parse_lock(f"\n{line}\n")


def test_digest_changes_with_any_byte_of_any_file() -> None:
    assert digest([locked(), locked(name="b")]) == digest([locked(name="b"), locked()])
    assert digest([locked()]) != digest([locked(DATA[:-1] + b"X")])


def test_one_changed_byte_fails(tmp_path: Path) -> None:
    file = tmp_path / "thing.jar"
    file.write_bytes(DATA)
    verify(locked(), file)
    file.write_bytes(DATA[:-1] + b"X")
    with pytest.raises(BrokerStartError, match=r"org\.example:thing:1\.0 does not have the locked sha256"):
        verify(locked(), file)


class Mirror:
    """A Maven repository on loopback that serves `files` by path and remembers what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                data = mirror.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/maven/"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    served = Mirror()
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join(5)


PATH = "/maven/org/example/thing/1.0/thing-1.0.jar"


def test_the_mirror_serves_the_first_time_and_the_cache_after(tmp_path: Path, mirror: Mirror) -> None:
    mirror.files[PATH] = DATA
    seen: list[tuple[str, int, int]] = []
    [file] = obtain([locked()], tmp_path, mirror=mirror.url, progress=lambda *state: seen.append(state))
    assert file.read_bytes() == DATA
    assert PATH in mirror.asked
    assert seen[-1] == ("downloading thing-1.0.jar", len(DATA), len(DATA))
    mirror.asked.clear()
    assert obtain([locked()], tmp_path, mirror=mirror.url) == [file]
    assert mirror.asked == []


def test_a_mirror_with_other_bytes_leaves_nothing_in_the_cache(tmp_path: Path, mirror: Mirror) -> None:
    mirror.files[PATH] = DATA[:-1] + b"X"
    with pytest.raises(BrokerStartError, match="locked sha256"):
        obtain([locked()], tmp_path, mirror=mirror.url)
    assert not list(tmp_path.rglob("*.jar"))


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, mirror: Mirror) -> None:
    mirror.files[PATH] = DATA
    [file] = obtain([locked()], tmp_path, mirror=mirror.url)
    file.write_bytes(b"X" * len(DATA))
    obtain([locked()], tmp_path, mirror=mirror.url)
    assert file.read_bytes() == DATA


def test_a_mirror_without_the_file_is_one_sentence(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(BrokerStartError, match="PIPELINE_MAVEN_MIRROR") as caught:
        obtain([locked()], tmp_path, mirror=mirror.url)
    assert mirror.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_mirror_in_reach_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BrokerStartError, match=r"could not be downloaded from the mirror http://127\.0\.0\.1:9 "):
        obtain([locked()], tmp_path, mirror="http://127.0.0.1:9")
