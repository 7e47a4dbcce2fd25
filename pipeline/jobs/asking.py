"""From a call of `enqueue` to a checked request: what does not fit is told here, where somebody can do something about it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.model.blobs import BlobOwner, Blobs, blob_name
from pipeline.model.errors import InvalidJob, PayloadTooLarge, SecretInPayload
from pipeline.model.job_ids import RANDOM_BYTES, job_id
from pipeline.model.job_policies import INLINE_BYTES_MAX, JobOptions, request_of
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobRequest
from pipeline.model.secret_shapes import mask_secrets, secret_field
from pipeline.model.validation import first_fault


class Asker:
    """Makes the requests of one type of job. With `blobs` large inputs go there when a request is `stored`."""

    def __init__(
        self,
        declared: JobType,
        inbox: str,
        blobs: Blobs | None = None,
        *,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.type = declared
        self._adapter: TypeAdapter[Any] = TypeAdapter(declared.takes)
        self._random = random
        self._inbox = inbox
        self._blobs = blobs

    def request(self, given: object, options: JobOptions, now_ms: int, own_id: str | None = None) -> JobRequest:
        """One alone. `own_id`: a new one, unless given. Raises InvalidJob for the input, ConfigurationError for an option."""
        return self.filled(self.form(options, now_ms), given, own_id or self.new_ids(1, now_ms)[0])

    def new_ids(self, count: int, now_ms: int) -> list[str]:
        """Drawn together: the system is asked once."""
        drawn = self._random(RANDOM_BYTES * count)
        return [job_id(now_ms, drawn[at : at + RANDOM_BYTES]) for at in range(0, len(drawn), RANDOM_BYTES)]

    def form(self, options: JobOptions, now_ms: int) -> JobRequest:
        """What all requests of one call have in common. Raises ConfigurationError."""
        return request_of(self.type.name, "", b"", options, self.type.policy, now_ms)

    def filled(self, form: JobRequest, given: object, job_id: str) -> JobRequest:
        """The form with an input and an id. Raises InvalidJob."""
        return JobRequest._make((job_id, form.type, self._payload(given), *form[3:]))

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
        most = INLINE_BYTES_MAX if self._blobs is None else self._blobs.policy.most_bytes
        if len(payload) > most:
            hint = (
                "set PIPELINE_BLOBS, so that it"
                if self._blobs is None
                else "PIPELINE_BLOB_BYTES_MAX is the limit; or it"
            )
            text = f"the input of job {name!r} has {len(payload)} bytes, more than {most}: {hint} lies outside of the topics"
            raise PayloadTooLarge(text, len(payload), most)
        if self.type.policy.secrets == "refuse":
            self._check_secrets(payload)
        return payload

    def is_large(self, request: JobRequest) -> bool:
        """Is its input to be stored before it is written?"""
        return self._blobs is not None and len(request.payload) > self._blobs.policy.inline_bytes

    def stored(self, request: JobRequest) -> JobRequest:
        """The same; a large input lies in the blob store, and the request refers to it. May wait. Raises BlobError."""
        if self._blobs is None or not self.is_large(request):
            return request
        owner: BlobOwner = "queue" if self.type.policy.blobs == "delete" else "kept"
        ref = self._blobs.put(owner, blob_name(self._inbox, request.id, "input"), request.payload)
        return request._replace(payload=b"", payload_ref=ref)

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
