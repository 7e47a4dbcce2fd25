"""From a call of `enqueue` to a checked request: what does not fit is told here, where somebody can do something about it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.model.errors import InvalidJob, PayloadTooLarge, SecretInPayload
from pipeline.model.job_ids import RANDOM_BYTES, job_id
from pipeline.model.job_policies import JobOptions, request_of
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobRequest
from pipeline.model.secret_shapes import mask_secrets, secret_field
from pipeline.model.validation import first_fault

PAYLOAD_BYTES_MAX = 900_000
"""A record with its headers, and an entry with a result beside it, fit into what the topics take by default."""


class Asker:
    """Makes the requests of one type of job."""

    def __init__(self, declared: JobType, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.type = declared
        self._adapter: TypeAdapter[Any] = TypeAdapter(declared.takes)
        self._random = random

    def request(self, given: object, options: JobOptions, now_ms: int) -> JobRequest:
        """Raises InvalidJob for the input, ConfigurationError for an option."""
        payload = self._payload(given)
        return request_of(
            self.type.name, job_id(now_ms, self._random(RANDOM_BYTES)), payload, options, self.type.policy, now_ms
        )

    def _payload(self, given: object) -> bytes:
        name, adapter = self.type.name, self._adapter
        try:
            value = adapter.validate_python(given)
            payload = adapter.dump_json(value)
        except ValidationError as error:
            where, what = first_fault(error)
            raise InvalidJob(f"the input does not fit job {name!r}: {where or 'it'}: {what}") from None
        except PydanticSerializationError as error:
            raise InvalidJob(f"the input of job {name!r} has no JSON form: {error}") from None
        if len(payload) > PAYLOAD_BYTES_MAX:
            text = (
                f"the input of job {name!r} has {len(payload)} bytes, more than {PAYLOAD_BYTES_MAX}: "
                "store it elsewhere and give the job a reference to it"
            )
            raise PayloadTooLarge(text, len(payload), PAYLOAD_BYTES_MAX)
        if self.type.policy.secrets == "refuse":
            self._check_secrets(payload)
        return payload

    def _check_secrets(self, payload: bytes) -> None:
        """What would be kept in the topics, and shown to whoever may look at them."""
        text = payload.decode("utf-8", "replace")
        if mask_secrets(text) == text:
            return
        field = secret_field(json.loads(payload)) or ""
        where = f" in {field}" if field else ""
        raise SecretInPayload(
            f"the input of job {self.type.name!r} looks as if it held a secret{where}, which would be kept in the topics: give the job "
            'a reference to it, such as the name of an environment variable, or declare it with secrets="allow" if it is none',
            field,
        )
