"""What a job's handler is given, and what it returned, between their bytes and their types; who may not run it, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.core.jobs.job import Job
from pipeline.model.headers import ErrorInfo, clip_error
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed
from pipeline.model.outcome import Failure, FailureKind, Warn
from pipeline.model.permissions import Permissions
from pipeline.model.scrubbing import Sensitive
from pipeline.model.secret_shapes import mask_secrets
from pipeline.model.validation import first_fault
from pipeline.worker.execution import failure_of, text_of
from pipeline.worker.jobs.blobs import PayloadBlobs

WARNING_CHARS = 2_000
BAD_INPUT, BAD_RESULT, NOT_PERMITTED = "BadInput", "BadResult", "PermissionMissing"
ONE_SHOT = re.compile(r"input_type=(generator|\w*iterator|map|filter|zip)\b")
"""What pydantic says of a value that can be gone through once."""


class Given(NamedTuple):
    """An input as its handler takes it."""

    value: Any


class Large(NamedTuple):
    """A result that is too large for an entry, and its warning."""

    result: bytes
    warning: str | None


class _Adapted:
    """The functions of one type, made once."""

    __slots__ = ("dump", "read")

    def __init__(self, declared: JobType) -> None:
        self.read = reader_of(declared)
        self.dump = dump_of(declared)


def reader_of(declared: JobType) -> Callable[[bytes], Given | Failure]:
    """What makes an input of this type of its JSON, or the failure of one that does not fit."""
    validate, name, terminal = TypeAdapter[Any](declared.takes).validate_json, declared.name, declared.policy.terminal

    def read(payload: bytes) -> Given | Failure:
        try:
            return Given(validate(payload))
        except ValidationError as error:
            return misfit(name, error)
        except (Exception, SystemExit) as error:  # pydantic takes only some of what a validator raises for a misfit
            failure = failure_of(error, terminal)
            text = f"the input of {name} can't be checked: a validator raised {failure.error_type}: {failure.message}"
            return replace(failure, message=text)

    return read


def dump_of(declared: JobType) -> Callable[[Any], bytes | Failure]:
    """What makes JSON of a result of this type, or the failure of one that does not fit what the handler declares."""
    adapter, name = TypeAdapter[Any](declared.gives), declared.name
    to_json = adapter.serializer.to_json  # `dump_json` is this, and takes a microsecond longer

    def dump(returned: Any) -> bytes | Failure:
        try:
            return to_json(returned, warnings="error")
        except PydanticSerializationError as error:
            return _at_second_sight(name, adapter, returned, error)

    return dump


def _at_second_sight(
    name: str, adapter: TypeAdapter[Any], returned: Any, doubt: PydanticSerializationError
) -> bytes | Failure:
    """It is not of the declared type itself. It fits all the same if its JSON can be read as one, as a dict for a model."""
    if ONE_SHOT.search(str(doubt)):  # there is nothing left in it to make JSON of
        text = f"{name} returned an iterator where it declares something else: return a list of what it gives"
        return _bad_result(returned, text)
    try:
        result = adapter.dump_json(returned, warnings=False)
        adapter.validate_json(result)
    except PydanticSerializationError as error:
        return no_json(name, returned, error)
    except ValidationError as error:
        where, what = first_fault(error)
        text = f"{name} returned {type(returned).__name__}, which does not fit the result that it declares: {where or 'it'}: {what}"
        return _bad_result(returned, text)
    return result


class Values:
    """Of the types of one queue."""

    def __init__(self, types: Mapping[str, JobType], permissions: Permissions, blobs: PayloadBlobs) -> None:
        self._adapted = {name: _Adapted(declared) for name, declared in types.items()}
        self._permissions = permissions
        self._blobs = blobs

    async def given(self, job: Job) -> Given | Failure:
        """The input, where the worker may run the job and it fits."""
        return self.read(job, await self.payload(job))

    async def payload(self, job: Job) -> bytes | Failure:
        """The input's bytes, wherever they are."""
        payload = self.at_hand(job)
        return await self.fetched(job) if payload is None else payload

    def at_hand(self, job: Job) -> bytes | Failure | None:
        """The input's bytes; None: they are to be `fetched`. Asked before every execution: what the worker may do may have changed
        since the one before."""
        request, needed = job.request, job.kind.policy.permissions
        assert request is not None
        if needed and (missing := self._permissions.missing(needed)):
            return _not_permitted(request.type, missing)
        return request.payload if request.payload_ref is None else None

    async def fetched(self, job: Job) -> bytes | Failure:
        request = job.request
        assert request is not None
        assert request.payload_ref is not None
        return await self._blobs.input(request.payload_ref)

    def read(self, job: Job, payload: bytes | Failure) -> Given | Failure:
        return payload if isinstance(payload, Failure) else self._adapted[job.kind.name].read(payload)

    def completed(self, job: Job, returned: object, warning: str | None = None) -> Completed | Failure | Large:
        """The ending of an execution that returned this. What is `Large` is to be `stored`."""
        if isinstance(returned, Warn):
            return Completed(None, returned.reason)
        if returned is None:
            return Completed(None, warning)
        result = self._adapted[job.kind.name].dump(returned)
        return result if isinstance(result, Failure) else self.encoded(job, result, warning)

    def encoded(self, job: Job, result: bytes | None, warning: str | None) -> Completed | Failure | Large:
        """The same of a result as JSON."""
        if result is None or self._blobs.is_inline(job, result):
            return Completed(result, warning)
        return Large(result, warning)

    async def stored_if_large(self, job: Job, ending: Completed | Failure | Large) -> Completed | Failure:
        """The ending, its result stored where that is large."""
        return await self.stored(job, ending) if isinstance(ending, Large) else ending

    async def stored(self, job: Job, large: Large) -> Completed | Failure:
        ending = await self._blobs.completed(job, large.result)
        return ending._replace(warning=large.warning) if isinstance(ending, Completed) else ending


def misfit(type_name: str, error: ValidationError) -> Failure:
    where, what = first_fault(error)
    text = f"the input does not fit what {type_name} takes: {where or 'the input'}: {what}"
    return Failure(FailureKind.TERMINAL, BAD_INPUT, "ValidationError", text)


def no_json(type_name: str, returned: object, error: Exception) -> Failure:
    return _bad_result(returned, f"{type_name} returned {type(returned).__name__}, which has no JSON form: {error}")


def _bad_result(returned: object, text: str) -> Failure:
    return Failure(FailureKind.TERMINAL, BAD_RESULT, type(returned).__name__, text)


def _not_permitted(type_name: str, missing: list[str]) -> Failure:
    text = (
        f"{type_name} needs the permission {', '.join(missing)}, which this worker is not granted: add it to PIPELINE_PERMISSIONS "
        "of the workers that may, then retry the job"
    )
    return Failure(FailureKind.TERMINAL, NOT_PERMITTED, NOT_PERMITTED, text)


def plain_text(words: object, most: int) -> str:
    """What a handler says, as it is kept and shown: nothing in it may look like a secret, and every store of texts must take it.
    (A file name that is not UTF-8 is no text that Avro has.)"""
    return mask_secrets(text_of(words)[:most]).encode("utf-8", "replace").decode()


def kept(failure: Failure) -> Failure:
    """It is kept in the topics, and shown: nothing in it may look like a secret, and all of it must fit into an entry."""
    message, stack, log = Sensitive().scrub_all(failure.message, failure.stack, failure.log)
    told = clip_error(ErrorInfo(failure.error_class, failure.error_type, message, stack))
    return replace(
        failure,
        error_class=told.error_class,
        error_type=told.error_type,
        message=told.message,
        stack=told.stack,
        log=log,
        scrubbed=True,
    )
