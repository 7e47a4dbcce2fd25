"""Batch handlers of jobs: many jobs of a type in one call, and a result for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from typing_extensions import TypedDict

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.policies import BatchPolicy

SIZE_MAX = 10_000
STATUSES = ("completed", "completed_with_warning", "failed", "rejected")

R = TypeVar("R")


class ItemResult(TypedDict, Generic[R], total=False):
    """What a batch handler returns for one job.

    `id`: of the job (`jobs[n].id`); where none of the results has one they are in the order of the inputs. `status`: "completed" with
    its `result`, "completed_with_warning" with the warning as `error` too, "failed" (tried again while attempts last) or "rejected"
    (not tried again) with the `error`, a text or an exception. `after`: "failed" only, when to try again, as `Retry(after=...)`.
    """

    id: str
    status: str
    result: R
    error: object
    after: str | float


def Batch(size: int = 100, *, wait: str | float = "50ms") -> BatchPolicy:
    """A handler that gets up to `size` inputs in one call, and waits at most `wait` for them. Raises ConfigurationError."""
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= SIZE_MAX:
        raise ConfigurationError(f"size={size!r:.80} of Batch must be a whole number from 1 to {SIZE_MAX}")
    return BatchPolicy(size, parse_duration_ms(wait, "wait"))


def by_job(returned: object, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What was returned for each of these jobs. Raises ValueError for what can't be told apart, in one sentence."""
    if returned is None:
        return {job_id: {"status": "completed"} for job_id in ids}
    if not isinstance(returned, list | tuple):
        raise ValueError(
            f"the batch handler returned {type(returned).__name__}: it returns None, or a list with {{id, status, result | error}} of each"
        )
    for at, item in enumerate(returned):
        if not isinstance(item, Mapping) or item.get("status") not in STATUSES:
            raise ValueError(
                f"result {at} of the batch handler must be a dict with a status out of {', '.join(STATUSES)}"
            )
    if not any("id" in item for item in returned):
        if len(returned) != len(ids):
            raise ValueError(f"the batch handler returned {len(returned)} results without an id for {len(ids)} jobs")
        return dict(zip(ids, returned, strict=True))
    found: dict[str, Mapping[str, Any]] = {}
    known = set(ids)
    for at, item in enumerate(returned):
        job_id = item.get("id")
        if job_id not in known or job_id in found:
            raise ValueError(
                f"result {at} of the batch handler has an id that is not in its batch, or that another result has"
            )
        found[job_id] = item
    return found
