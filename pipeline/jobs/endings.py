"""What came of a job that has ended: its result, wherever that lies, or why it has none."""

from __future__ import annotations

from pipeline.model.blobs import Blobs
from pipeline.model.errors import BlobError, JobUnsuccessful
from pipeline.model.history import attempts
from pipeline.model.job_states import SUCCEEDED, JobState
from pipeline.model.jobs import JobRecord


def result_of(record: JobRecord, blobs: Blobs | None) -> bytes | None:
    """The result as JSON, None where the handler gave none. Reads the blob store, if it lies there: that may wait.

    Raises JobUnsuccessful for an ending without a result, BlobError when the store is not known or does not give it.
    """
    outcome, job_id, state = record.outcome, record.request.id, record.state.value
    if record.state in SUCCEEDED:
        if outcome.result_ref is None:
            return outcome.result
        if blobs is None:
            raise BlobError(
                f"the result of job {job_id} lies in a blob store: set PIPELINE_BLOBS to the one its workers have"
            )
        return blobs.get(outcome.result_ref)
    if record.state is JobState.CANCELLED:
        raise JobUnsuccessful(f"job {job_id} was cancelled: {outcome.reason or 'no reason given'}", state)
    error = outcome.error
    if error is None:
        why = f"{state}: {outcome.reason}" if outcome.reason else f"{state}, and no error is kept"
        raise JobUnsuccessful(f"job {job_id} has no result, it is {why}", state)
    raise JobUnsuccessful(
        f"job {job_id} was given up after {attempts(record.attempt)}: {error.error_type}: {error.message}",
        state,
        error.error_class,
    )
