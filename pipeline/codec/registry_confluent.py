"""A Confluent-compatible registry by URL: Confluent's own, Apicurio's `/apis/ccompat/v7`, Karapace,
Redpanda's.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.codec.registry import SchemaNotFound, SubjectVersion
from pipeline.codec.schema import AvroSchema
from pipeline.codec.wire import ID_MAX
from pipeline.model.errors import ConfigurationError, IncompatibleSchema, SchemaUnavailable

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

T = TypeVar("T")

_INVALID = (HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)


@dataclass(frozen=True, slots=True)
class RegistryPolicy:
    """How to reach the registry. `user_info` is `name:password`; `ca_location` a PEM file for a private CA.

    One request waits `timeout_s`; a request that fails in a way that may heal is sent `retries` more times.
    """

    url: str
    user_info: str = ""
    ca_location: str = ""
    timeout_s: float = 5.0
    retries: int = 1


class ConfluentRegistry:
    """`SchemaRegistry` over confluent-kafka's registry client."""

    def __init__(self, policy: RegistryPolicy) -> None:
        self.url = re.sub(r"//[^/@]*@", "//", policy.url)
        config: dict[str, Any] = {
            "url": policy.url,
            "timeout": policy.timeout_s,
            "max.retries": policy.retries,
            "retries.wait.ms": 100,
            "retries.max.wait.ms": 1_000,
        }
        if policy.user_info:
            config["basic.auth.user.info"] = policy.user_info
        if policy.ca_location:
            config["ssl.ca.location"] = policy.ca_location
        try:
            self._client = _client(config)
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(f"Registry setting for {self.url} can't be used: {error}.") from error

    def schema_by_id(self, schema_id: int) -> str:
        return _text(self._ask(lambda: self._client.get_schema(schema_id), f"schema id {schema_id}"))

    def schema_by_guid(self, guid: str) -> str:
        try:
            return _text(self._ask(lambda: self._client.get_schema_by_guid(guid), f"schema GUID {guid}"))
        except SchemaUnavailable as error:
            if getattr(error.__cause__, "http_status_code", 0) != HTTPStatus.NOT_FOUND or not self._is_there():
                raise
            raise SchemaNotFound(
                f"The registry at {self.url} knows schemas by ids only, so schema GUID {guid} can't be looked up."
            ) from error

    def _is_there(self) -> bool:
        """Whether it answers for itself: a 404 was no proxy's then, and it has no such question. Raises SchemaUnavailable."""
        with contextlib.suppress(SchemaNotFound):
            self._ask(lambda: self._client.get_schema(ID_MAX), f"schema id {ID_MAX}")
        return True

    def subjects_of(self, schema_id: int) -> list[str]:
        return list(self._ask(lambda: self._client.get_subjects_by_schema_id(schema_id), f"schema id {schema_id}"))

    def subjects(self, prefix: str = "") -> list[str]:
        every = self._ask(self._client.get_subjects, "subjects")
        return sorted(subject for subject in every if subject.startswith(prefix))

    def versions(self, subject: str) -> list[SubjectVersion]:
        try:
            numbers = self._ask(lambda: self._client.get_versions(subject), f"subject {subject}")
        except SchemaNotFound:
            return []
        return [self._version(subject, number) for number in sorted(numbers)]

    def _version(self, subject: str, number: int) -> SubjectVersion:
        found = self._ask(lambda: self._client.get_version(subject, number), f"version {number} of {subject}")
        return SubjectVersion(subject, number, int(found.schema_id or 0), _text(found.schema))

    def lookup(self, subject: str, schema: AvroSchema) -> int:
        found = self._ask(lambda: self._client.lookup_schema(subject, _schema(schema)), f"{schema.name} in {subject}")
        return int(found.schema_id or 0)

    def register(self, subject: str, schema: AvroSchema) -> int:
        return int(self._ask(lambda: self._client.register_schema(subject, _schema(schema)), f"subject {subject}"))

    def compatibility(self, subject: str) -> str | None:
        try:
            return str(self._ask(lambda: self._client.get_compatibility(subject), f"level of {subject}"))
        except SchemaNotFound:
            return None

    def set_compatibility(self, subject: str, level: str) -> None:
        self._ask(lambda: self._client.set_compatibility(subject, level), f"level of {subject}")

    def _ask(self, question: Callable[[], T], about: str) -> T:
        """One request; what went wrong becomes one of the port's three errors."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            return question()
        except SchemaRegistryError as error:
            status = int(error.http_status_code)
            if status == HTTPStatus.NOT_FOUND and _is_registry_code(error.error_code):
                raise SchemaNotFound(f"The registry at {self.url} does not have {about}.") from error
            if status in _INVALID:
                raise IncompatibleSchema(
                    f"The registry at {self.url} refuses {about}: {error.error_message}."
                ) from error
            raise SchemaUnavailable(
                f"The registry at {self.url} answers {status} to {about}: {error.error_message}; "
                "check its state and the credentials in PIPELINE_REGISTRY_USER_INFO."
            ) from error
        except Exception as error:  # the client raises its HTTP library's own errors, which differ by version
            raise SchemaUnavailable(
                f"The registry at {self.url} did not answer about {about} ({type(error).__name__}: {error}); "
                "start it or correct PIPELINE_REGISTRY."
            ) from error


def _is_registry_code(code: Any) -> bool:
    """Whether a 404 is the registry's own (40401 ...). A proxy's, or a wrong path's, must not make ids
    foreign.
    """
    return str(code).startswith("404") and len(str(code)) == len("40401")


def _client(config: dict[str, Any]) -> SchemaRegistryClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from its OAuth library, at import
        from confluent_kafka.schema_registry import SchemaRegistryClient

        return SchemaRegistryClient.new_client(config)


def _schema(schema: AvroSchema) -> Schema:
    from confluent_kafka.schema_registry import Schema

    return Schema(schema.text, "AVRO")


def _text(found: Any) -> str:
    """The JSON text of an Avro schema the registry gave. Raises SchemaNotFound for one this codec does not
    read.
    """
    kind = found.schema_type or "AVRO"
    if kind != "AVRO" or found.references:
        what = f"a {kind} schema" if kind != "AVRO" else "an Avro schema with references to other subjects"
        raise SchemaNotFound(f"The registry has {what} there, which this codec does not read.")
    return str(found.schema_str)
