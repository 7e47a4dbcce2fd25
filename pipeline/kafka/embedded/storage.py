"""The formatted directory a Kafka node starts from.

Kafka's own tool writes it once per version (1.5 s of JVM); the result holds only feature levels, so it is
kept in the cache and copied for each new node, beside a meta.properties with the ids of cluster, node and
directory.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from pipeline.kafka.embedded.jars import exclusive
from pipeline.kafka.embedded.jvm import java
from pipeline.kafka.embedded.properties import BrokerSpec, NodePorts, node_properties, properties_text
from pipeline.model.errors import BrokerStartError

_META = "meta.properties"
_FORMAT_TIMEOUT_S = 60


def new_id() -> str:
    """A random id as Kafka writes them: 22 characters of URL-safe base64, not starting with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def template(cache_dir: Path, jars: Sequence[Path], lock_digest: str) -> Path:
    """The cached formatted directory of this Kafka version, made now when it is not there yet."""
    ready = cache_dir / "formatted" / lock_digest
    if ready.is_dir():
        return ready
    with exclusive(cache_dir, "formatted"):
        if not ready.is_dir():
            ready.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".staging-", dir=ready.parent) as staging:
                formatted = _format(Path(staging), jars)
                (formatted / _META).unlink()
                os.replace(formatted, ready)
    return ready


def _format(scratch: Path, jars: Sequence[Path]) -> Path:
    target = scratch / "data"
    config = scratch / "server.properties"
    ports = (NodePorts(broker=1, controller=2),)
    config.write_text(properties_text(node_properties(BrokerSpec(), 1, ports, target)), encoding="utf-8")
    class_path = os.pathsep.join(map(str, jars))
    flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"]
    tool = ["kafka.tools.StorageTool", "format", "-t", new_id(), "-c", str(config)]
    done = subprocess.run(
        [java(), *flags, "-cp", class_path, *tool],
        capture_output=True,
        text=True,
        timeout=_FORMAT_TIMEOUT_S,
        check=False,
        env={"PATH": os.defpath},
    )
    if done.returncode != 0 or not (target / _META).is_file():
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise BrokerStartError(f"Kafka's storage tool could not format a directory in {scratch.parent}: {said}")
    return target


def prepare(log_dir: Path, formatted: Path, cluster_id: str, node_id: int) -> None:
    """Make `log_dir` a formatted directory of that node; one that has been used before is left as it is."""
    if (log_dir / _META).is_file():
        return
    shutil.copytree(formatted, log_dir, dirs_exist_ok=True)
    meta = {"version": "1", "cluster.id": cluster_id, "node.id": str(node_id), "directory.id": new_id()}
    (log_dir / _META).write_text(properties_text(meta), encoding="utf-8")
