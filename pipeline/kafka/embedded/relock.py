"""Writes the locks anew: `python -m pipeline.kafka.embedded.relock`, for maintainers, after changing a version here.

The trailing `!` keeps an artifact's parent from managing others' versions: the logging bridge's would put
kafka-clients 3.9 beside the 4.4 server.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from pipeline.kafka.embedded.lock import LockedArtifact, parse_lock

KAFKA = ("org.apache.kafka:kafka_2.13:4.4.0", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5!")
APICURIO = ("io.apicurio:apicurio-registry-app:3.1.6:all:tar.gz!",)


def resolve(coordinates: tuple[str, ...], cache: Path, *, transitive: bool) -> list[LockedArtifact]:
    """Downloads what the coordinates need and returns it with its measured sha256."""
    from jgo.maven import MavenContext  # noqa: PLC0415

    context = MavenContext(repo_cache=cache, timeout=60)
    wanted = [context.create_dependency(each) for each in coordinates]
    needed = wanted
    if transitive:
        inputs, others = context.resolver.resolve(wanted)
        needed = [*inputs, *others]
    locked = []
    for dependency in needed:
        artifact = dependency.artifact
        data = artifact.resolve().read_bytes()
        locked.append(
            LockedArtifact(
                artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier or "",
                artifact.packaging, hashlib.sha256(data).hexdigest(), len(data),
            )
        )
    return sorted(locked, key=lambda each: each.coordinates)


def write(name: str, coordinates: tuple[str, ...], locked: list[LockedArtifact]) -> None:
    total_mb = sum(each.size_bytes for each in locked) / 1e6
    head = f"# {' + '.join(coordinates)}: {len(locked)} files, {total_mb:.1f} MB. Written by relock; not edited by hand.\n"
    text = head + "".join(f"{each.line()}\n" for each in locked)
    parse_lock(text)
    Path(__file__).with_name(f"{name}.lock").write_text(text, encoding="utf-8")
    sys.stdout.write(head)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write("kafka", KAFKA, resolve(KAFKA, Path(scratch), transitive=True))
        write("apicurio", APICURIO, resolve(APICURIO, Path(scratch), transitive=False))


if __name__ == "__main__":
    main()
