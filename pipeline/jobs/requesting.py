"""What an application offers to those who ask for jobs. `Pipeline` is one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.model.job_policies import options_of

if TYPE_CHECKING:
    from pipeline.jobs.client import JobClient
    from pipeline.jobs.handle import JobHandle


class JobRequests:
    """Mixed into `Pipeline`, whose client of jobs it uses."""

    if TYPE_CHECKING:

        @property
        def jobs(self) -> JobClient: ...
        def _job_name(self, job: str | Callable[..., Any]) -> str: ...

    async def enqueue(self, job: str | Callable[..., Any], given: object = None, **options: Any) -> JobHandle:
        """Ask for a job by its name or its handler; returns when the brokers have acknowledged it.

        Options: delay, run_at, key, priority, tenant, dedup_id, dedup_window, attempts, backoff, timeout, expires, workflow_id,
        tags, webhook. Raises InvalidJob for the input, `ConfigurationError` for an option, PublishError.
        """
        return (await self.jobs.enqueue(self._job_name(job), [given], options_of(options)))[0]

    async def enqueue_many(
        self, job: str | Callable[..., Any], given: Iterable[object], **options: Any
    ) -> list[JobHandle]:
        """`enqueue` for many inputs with the same options: they go out together."""
        return await self.jobs.enqueue(self._job_name(job), list(given), options_of(options))

    def enqueue_sync(self, job: str | Callable[..., Any], given: object = None, **options: Any) -> JobHandle:
        """`enqueue` for a caller without asyncio."""
        return self.jobs.enqueue_sync(self._job_name(job), [given], options_of(options))[0]

    async def cancel(
        self, job: str | Callable[..., Any], job_id: str, *, key: str | None = None, reason: str = "cancelled"
    ) -> None:
        """Ask for a job to be cancelled. `key`: the key, else the dedup_id, that it was asked for with; it saves asking every partition."""
        await self.jobs.cancel(self._job_name(job), job_id, key, reason)

    def job_handle(self, job: str | Callable[..., Any], job_id: str) -> JobHandle:
        """A handle of a job that was asked for some time."""
        return self.jobs.handle(self._job_name(job), job_id)
