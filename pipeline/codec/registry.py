"""Where schemas get their ids: the port, and how subjects are named.

Two adapters: `registry_confluent` (any Confluent-compatible server by URL) and `registry_local` (ids kept in
the Kafka cluster itself, so that first use needs nothing). Every call may block and may raise
SchemaUnavailable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.codec.schema import AvroSchema
from pipeline.model.errors import CodecError


class SchemaNotFound(CodecError):
    """The registry answered, and has no such schema or subject."""


@dataclass(frozen=True, slots=True)
class SubjectVersion:
    """One version of a subject, as the registry holds it."""

    subject: str
    version: int
    schema_id: int
    text: str


class SchemaRegistry(Protocol):
    """What the codec and the command line need of a registry.

    Raises SchemaUnavailable when the registry does not answer or refuses the caller, SchemaNotFound when it
    has nothing under that id, GUID or subject, IncompatibleSchema when it refuses a version.
    """

    def schema_by_id(self, schema_id: int) -> str:
        """The schema's JSON text."""
        ...

    def schema_by_guid(self, guid: str) -> str:
        """The schema's JSON text, by the GUID that travels in a header."""
        ...

    def subjects_of(self, schema_id: int) -> list[str]:
        """The subjects that have this schema as one of their versions."""
        ...

    def subjects(self, prefix: str = "") -> list[str]:
        """Every subject whose name starts with `prefix`."""
        ...

    def versions(self, subject: str) -> list[SubjectVersion]:
        """The versions of a subject, oldest first; none when it does not exist."""
        ...

    def lookup(self, subject: str, schema: AvroSchema) -> int:
        """The id of this very schema under this subject. Never registers it for others."""
        ...

    def register(self, subject: str, schema: AvroSchema) -> int:
        """Add the schema as the subject's newest version (or find it there); gives its id."""
        ...

    def compatibility(self, subject: str) -> str | None:
        """The level set for the subject, None when it has none of its own."""
        ...

    def set_compatibility(self, subject: str, level: str) -> None:
        """Hold the subject's versions to a level such as FULL_TRANSITIVE."""
        ...


def subject_of(topic: str, record_name: str) -> str:
    """The subject of a record in a topic (TopicRecordNameStrategy: several types per topic).

    `topic` is the name as it is on the broker, so an environment prefix stands before the subject too.
    """
    return f"{topic}-{record_name}"


def topic_subjects(topic: str, record_name: str) -> tuple[str, str]:
    """The subjects under which a value of `topic` may be registered: ours, and others' TopicNameStrategy."""
    return subject_of(topic, record_name), f"{topic}-value"
