"""A schema registry that needs no server: schemas and ids live in one compacted topic of the cluster.

An id follows from the schema's own text (31 bits of its SHA-256), so processes that never met agree on it.
Should two schemas want one id, the first in the log has it and the other takes the next; each writer reads
the log back before it uses an id. A log entry's key is subject and schema, so compaction never loses one and
a repeated write is harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from threading import Lock
from typing import Protocol
from uuid import UUID

from pipeline.codec.catalogue import SchemaCatalogue
from pipeline.codec.compatibility import check_versions
from pipeline.codec.registry import SchemaNotFound, SubjectVersion
from pipeline.codec.schema import AvroSchema, SchemaRefused, parse
from pipeline.codec.wire import ID_MAX
from pipeline.model.topics import SCHEMAS_TOPIC

SCHEMA_LOG_TOPIC = SCHEMAS_TOPIC

LogEntry = tuple[str, bytes]


class SchemaLog(Protocol):
    """An append-only log of (key, value). Both calls block, and raise SchemaUnavailable when the cluster is
    away.
    """

    def read(self, position: int) -> tuple[Sequence[LogEntry], int]:
        """Entries from `position` to the end as it is now, and the position to read on from; 0 is the
        start.
        """
        ...

    def append(self, key: str, value: bytes) -> None:
        """Add an entry; returns once it is durable."""
        ...


class MemorySchemaLog:
    """A log in this process, for tests and the memory cluster."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []

    def read(self, position: int) -> tuple[Sequence[LogEntry], int]:
        return self.entries[position:], len(self.entries)

    def append(self, key: str, value: bytes) -> None:
        self.entries.append((key, value))


def guid_of(text: str) -> str:
    """The GUID this registry gives a schema: from its text alone."""
    return str(UUID(bytes=hashlib.sha256(text.encode()).digest()[:16]))


class LocalRegistry:
    """`SchemaRegistry` over a `SchemaLog`. The contracts of the catalogue are registered as soon as they are
    used.
    """

    def __init__(self, log: SchemaLog, catalogue: SchemaCatalogue) -> None:
        self._log = log
        self._own = {schema.text for schema in catalogue.present.values()}
        self._position = 0
        self._lock = Lock()
        self._claims: dict[str, SubjectVersion] = {}
        self._levels: dict[str, str] = {}
        self._owner: dict[int, str] = {}

    def schema_by_id(self, schema_id: int) -> str:
        with self._lock:
            if schema_id not in self._owner:
                self._catch_up()
            if schema_id not in self._owner:
                raise SchemaNotFound(f"Schema id {schema_id} is not in {SCHEMA_LOG_TOPIC}.")
            return self._owner[schema_id]

    def schema_by_guid(self, guid: str) -> str:
        with self._lock:
            self._catch_up()
            for text in self._owner.values():
                if guid_of(text) == guid:
                    return text
        raise SchemaNotFound(f"Schema GUID {guid} is not in {SCHEMA_LOG_TOPIC}.")

    def subjects_of(self, schema_id: int) -> list[str]:
        with self._lock:
            self._catch_up()
            return [claim.subject for claim in self._held() if claim.schema_id == schema_id]

    def subjects(self, prefix: str = "") -> list[str]:
        with self._lock:
            self._catch_up()
            return sorted({claim.subject for claim in self._held() if claim.subject.startswith(prefix)})

    def versions(self, subject: str) -> list[SubjectVersion]:
        with self._lock:
            self._catch_up()
            return self._versions(subject)

    def lookup(self, subject: str, schema: AvroSchema) -> int:
        with self._lock:
            self._catch_up()
            for claim in self._versions(subject):
                if claim.text == schema.text:
                    return claim.schema_id
        if schema.text not in self._own:
            raise SchemaNotFound(f"Subject {subject} does not have this version of {schema.name}.")
        return self.register(subject, schema)

    def register(self, subject: str, schema: AvroSchema) -> int:
        with self._lock:
            self._catch_up()
            versions = self._versions(subject)
            for claim in versions:
                if claim.text == schema.text:
                    return claim.schema_id
            level = self._levels.get(subject, schema.compatibility)
            check_versions(schema, [parse(version.text) for version in versions], level)
            return self._claim(subject, schema.text)

    def compatibility(self, subject: str) -> str | None:
        with self._lock:
            self._catch_up()
            return self._levels.get(subject)

    def set_compatibility(self, subject: str, level: str) -> None:
        self._log.append(f"level {subject}", json.dumps({"subject": subject, "level": level}).encode())

    def _claim(self, subject: str, text: str) -> int:
        """Write the claim of an id, read back who came first, and go on to the next id when it was
        another.
        """
        digest = hashlib.sha256(text.encode()).digest()
        wanted = int.from_bytes(digest[:4], "big") & ID_MAX or 1
        while True:
            while self._owner.get(wanted, text) != text:
                wanted = wanted % ID_MAX + 1
            body = json.dumps({"subject": subject, "id": wanted, "schema": text})
            self._log.append(f"schema {subject} {digest.hex()}", body.encode())
            self._catch_up()
            if self._owner.get(wanted) == text:
                return wanted

    def _catch_up(self) -> None:
        entries, self._position = self._log.read(self._position)
        for key, value in entries:
            self._apply(key, value)

    def _apply(self, key: str, value: bytes) -> None:
        """One entry; what is not ours to read (another version's, or damage) is passed over."""
        try:
            body = json.loads(value)
            if key.startswith("level "):
                self._levels[str(body["subject"])] = str(body["level"])
                return
            subject, schema_id, text = str(body["subject"]), int(body["id"]), parse(str(body["schema"])).text
        except (ValueError, KeyError, TypeError, SchemaRefused):
            return
        self._owner.setdefault(schema_id, text)
        self._claims[key] = SubjectVersion(subject, 0, schema_id, text)

    def _held(self) -> list[SubjectVersion]:
        """The claims that won their id."""
        return [claim for claim in self._claims.values() if self._owner.get(claim.schema_id) == claim.text]

    def _versions(self, subject: str) -> list[SubjectVersion]:
        held = [claim for claim in self._held() if claim.subject == subject]
        return [SubjectVersion(subject, n, claim.schema_id, claim.text) for n, claim in enumerate(held, 1)]
