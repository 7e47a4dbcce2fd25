"""The lock: which files of which versions make up a server, each with its size and sha256.

A lock file has one artifact a line, `group:artifact:version[:classifier:type] sha256 bytes`; `#` starts a
comment. `relock` writes it; nothing that is not in it is ever put on a class path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline.model.errors import BrokerStartError

_SHORT, _LONG = 3, 5


@dataclass(frozen=True, slots=True)
class LockedArtifact:
    """One file: Maven coordinates, sha256 in hex, size in bytes."""

    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str
    size_bytes: int

    @property
    def coordinates(self) -> str:
        base = f"{self.group}:{self.artifact}:{self.version}"
        return f"{base}:{self.classifier}:{self.packaging}" if self.classifier else base

    @property
    def path(self) -> Path:
        """Where it lies below a repository's root."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        name = f"{self.artifact}-{self.version}{suffix}.{self.packaging}"
        return Path(*self.group.split("."), self.artifact, self.version, name)

    def line(self) -> str:
        return f"{self.coordinates} {self.sha256} {self.size_bytes}"


def parse_lock(text: str) -> tuple[LockedArtifact, ...]:
    """Raises `BrokerStartError` for a line that is not of the form above."""
    found = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        try:
            coordinates, sha256, size = line.split()
            parts = coordinates.split(":")
            if len(parts) not in (_SHORT, _LONG):
                raise ValueError(coordinates)
            classifier, packaging = parts[3:] if len(parts) == _LONG else ("", "jar")
            found.append(LockedArtifact(parts[0], parts[1], parts[2], classifier, packaging, sha256, int(size)))
        except ValueError as error:
            raise BrokerStartError(
                f"Line {number} of the lock is not `group:artifact:version sha256 bytes`; run relock again."
            ) from error
    return tuple(found)


def load_lock(name: str) -> tuple[LockedArtifact, ...]:
    """The lock of that name shipped in this package: `kafka` or `apicurio`."""
    return parse_lock(resources.files(__package__).joinpath(f"{name}.lock").read_text(encoding="utf-8"))


def digest(artifacts: Iterable[LockedArtifact]) -> str:
    """A short name for exactly this set of files; what is derived from them is cached under it."""
    joined = "\n".join(sorted(each.line() for each in artifacts))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def is_intact(artifact: LockedArtifact, file: Path) -> bool:
    """True when the file exists and holds exactly the locked bytes."""
    try:
        if file.stat().st_size != artifact.size_bytes:
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == artifact.sha256
    except FileNotFoundError:
        return False


def verify(artifact: LockedArtifact, file: Path) -> None:
    """Raises `BrokerStartError` that names the artifact when the bytes are not the locked ones."""
    if not is_intact(artifact, file):
        raise BrokerStartError(
            f"{artifact.coordinates} does not have the locked sha256 {artifact.sha256[:12]}..., "
            "so it is not used; check the mirror (PIPELINE_MAVEN_MIRROR) or run relock after an upgrade."
        )
