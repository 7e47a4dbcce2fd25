"""Large inputs and results of jobs at the worker: read from a blob store before the handler runs, put there after it."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.blobs import BlobOwner, Blobs, blob_name
from pipeline.model.errors import BlobError, BlobMissing
from pipeline.model.job_policies import INLINE_BYTES_MAX
from pipeline.model.jobs import Completed
from pipeline.model.outcome import Failure, FailureKind

NO_STORE, INPUT_MISSING, RESULT_TOO_LARGE = "NoBlobStore", "InputMissing", "ResultTooLarge"
TRIES_S = (0.2, 1.0, 5.0)
"""Waits between tries to store a result: what the handler did is not to be done again for that."""


class PayloadBlobs:
    """Of one queue, by the name of its inbox. `blobs` is None where there is no store."""

    def __init__(self, inbox: str, blobs: Blobs | None) -> None:
        self._inbox = inbox
        self._blobs = blobs

    async def input(self, ref: str) -> bytes | Failure:
        if self._blobs is None:
            text = "the input lies in a blob store: set PIPELINE_BLOBS at this worker, then retry the job"
            return Failure(FailureKind.TERMINAL, NO_STORE, NO_STORE, text)
        try:
            return await asyncio.to_thread(self._blobs.get, ref)
        except BlobMissing as error:
            return Failure(FailureKind.TERMINAL, INPUT_MISSING, "BlobMissing", str(error))
        except BlobError as error:
            return Failure(FailureKind.RETRYABLE, "BlobError", "BlobError", str(error))

    def is_inline(self, job: Job, result: bytes) -> bool:
        """Its place is the entry."""
        blobs, room = self._blobs, _room(job)
        return len(result) <= (room if blobs is None else min(blobs.policy.inline_bytes, room))

    async def completed(self, job: Job, result: bytes) -> Completed | Failure:
        """The ending of a job that returned this, which is not inline."""
        blobs, size = self._blobs, len(result)
        if blobs is None:
            return _too_large(size, _room(job), "set PIPELINE_BLOBS, so that it lies outside of the topics")
        if size > blobs.policy.most_bytes:
            return _too_large(size, blobs.policy.most_bytes, "PIPELINE_BLOB_BYTES_MAX is the limit")
        owner: BlobOwner = "queue" if job.kind.policy.blobs == "delete" else "kept"
        # Each execution has a name of its own: one that was taken for dead must not write over the result that counts.
        name = blob_name(self._inbox, job.id, f"result-{job.version}-{secrets.token_hex(4)}")
        for wait_s in (*TRIES_S, None):
            try:
                return Completed(None, None, await asyncio.to_thread(blobs.put, owner, name, result))
            except BlobError as error:
                if wait_s is None:
                    return Failure(
                        FailureKind.RETRYABLE, "BlobError", "BlobError", f"the result can't be stored: {error}"
                    )
                await asyncio.sleep(wait_s)
        raise AssertionError("there is a last try")


def _room(job: Job) -> int:
    """Beside its input."""
    assert job.request is not None
    return INLINE_BYTES_MAX - len(job.request.payload)


def _too_large(size: int, most: int, hint: str) -> Failure:
    text = f"the result has {size} bytes, more than {most}: {hint}"
    return Failure(FailureKind.TERMINAL, RESULT_TOO_LARGE, RESULT_TOO_LARGE, text)


def drop(blobs: Blobs, refs: tuple[str, ...], log: Any) -> None:
    """Of a job that is forgotten. May wait."""
    for ref in refs:
        try:
            blobs.delete(ref)
        except BlobError as error:
            log.warning(
                "a blob of a forgotten job is left over: delete it by a rule of its store", ref=ref, error=str(error)
            )
