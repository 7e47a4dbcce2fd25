"""Writes the locks anew: `python -m pipeline.kafka.embedded.relock`, for maintainers, after changing a
version here.

The trailing `!` keeps an artifact's parent from managing others' versions: the logging bridge's would put
kafka-clients 3.9 beside the 4.4 server.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.kafka.embedded.lock import LockedArtifact, parse_lock

if TYPE_CHECKING:
    from jgo.maven import Artifact, MavenContext

KAFKA = ("org.apache.kafka:kafka_2.13:4.4.0", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5!")
KAFKA_3 = ("org.apache.kafka:kafka_2.13:3.9.2", "org.slf4j:slf4j-simple:1.7.36")
"""The newest before 4, for tests: brokers of that line are still in use."""
APICURIO = "io.apicurio:apicurio-registry-app:3.3.3:all:tar.gz"


def resolve_kafka(context: MavenContext, coordinates: tuple[str, ...]) -> list[LockedArtifact]:
    """Everything on the broker's class path."""
    inputs, others = context.resolver.resolve([context.create_dependency(each) for each in coordinates])
    return sorted((_locked(each.artifact) for each in [*inputs, *others]), key=lambda each: each.coordinates)


def resolve_apicurio(context: MavenContext) -> list[LockedArtifact]:
    """One archive with everything in it (jgo can't parse `tar.gz` in a coordinate)."""
    group, name, version, classifier, packaging = APICURIO.split(":")
    return [_locked(context.project(group, name).at_version(version).artifact(classifier, packaging))]


def _locked(artifact: Artifact) -> LockedArtifact:
    data = artifact.resolve().read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return LockedArtifact(
        group=artifact.groupId,
        artifact=artifact.artifactId,
        version=artifact.version,
        classifier=artifact.classifier or "",
        packaging=artifact.packaging,
        sha256=sha256,
        size_bytes=len(data),
    )


def write(name: str, coordinates: tuple[str, ...], locked: list[LockedArtifact]) -> None:
    total_mb = sum(each.size_bytes for each in locked) / 1e6
    what = f"{' + '.join(coordinates)}: {len(locked)} files, {total_mb:.1f} MB"
    head = f"# {what}. Written by relock; not edited by hand.\n"
    text = head + "".join(f"{each.line()}\n" for each in locked)
    parse_lock(text)
    Path(__file__).with_name(f"{name}.lock").write_text(text, encoding="utf-8")
    sys.stdout.write(head)


def main() -> None:
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch), timeout=60)
        write("kafka", KAFKA, resolve_kafka(context, KAFKA))
        write("kafka-3.9", KAFKA_3, resolve_kafka(context, KAFKA_3))
        write("apicurio", (APICURIO,), resolve_apicurio(context))


if __name__ == "__main__":
    main()
