"""What an application offers to those who operate its jobs: schedules, one more round, events, health. `Pipeline` is one of these."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.model.errors import InvalidJob
from pipeline.model.topics import CONTROL_TOPIC

if TYPE_CHECKING:
    from pipeline.codec import AvroCodec
    from pipeline.jobs.client import JobClient
    from pipeline.jobs.desk import QueueDesk
    from pipeline.jobs.events import JobEvent
    from pipeline.jobs.health import QueueHealth
    from pipeline.jobs.monitor import QueueStats
    from pipeline.model.cluster import Cluster
    from pipeline.settings import Settings

DEFAULT_QUEUE = "default"


class JobOperations:
    """Mixed into `Pipeline`, whose parts it uses."""

    _desks: dict[str, QueueDesk]

    if TYPE_CHECKING:
        name: str
        settings: Settings
        _making: threading.RLock

        @property
        def cluster(self) -> Cluster: ...
        @property
        def codec(self) -> AvroCodec: ...
        @property
        def jobs(self) -> JobClient: ...
        def _job_name(self, job: str | Callable[..., Any]) -> str: ...
        def _queue_of(self, job: str) -> str | None: ...
        def _kept_ms(self, queue: str) -> int: ...

    def desk(self, queue: str = DEFAULT_QUEUE) -> QueueDesk:
        """A queue of this environment at hand, whether this application declares it or not: its jobs, its schedules, commands to them."""
        with self._making:
            desks = self.__dict__.setdefault("_desks", {})
            if queue not in desks:
                desks[queue] = self._new_desk(queue)
            desk: QueueDesk = desks[queue]
            return desk

    def _new_desk(self, queue: str) -> QueueDesk:
        from pipeline.jobs.desk import DeskParts, QueueDesk
        from pipeline.jobs.index import path_of
        from pipeline.jobs.reading import QueueReader
        from pipeline.jobs.topics import topics_of

        topics = topics_of(queue, self.settings.prefix)
        reader = QueueReader(self.cluster, self.codec, topics, path_of(self.settings, topics.state))
        control = self.settings.prefix + CONTROL_TOPIC
        return QueueDesk(DeskParts(reader, self.codec, self.jobs, self.jobs.now_ms, control, self._kept_ms(queue)))

    def close_desks(self) -> None:
        for desk in self.__dict__.pop("_desks", {}).values():
            desk.close()

    async def schedule(
        self,
        name: str,
        job: str | Callable[..., Any],
        given: object = None,
        *,
        cron: str,
        zone: str = "UTC",
        misfire: str = "once",
        **options: Any,
    ) -> None:
        """A job for each tick of a cron expression; the same again changes nothing, so that each start of a service may say it.

        `misfire`: what becomes of ticks that nobody was there to fire in time: skip, once (the last of them), all. `options` are those
        of `enqueue` but for delay, run_at, expires and dedup. Raises InvalidJob, ConfigurationError, PublishError.
        """
        from pipeline.jobs.scheduling import schedule_of

        job_name = self._job_name(job)
        asker = await asyncio.get_running_loop().run_in_executor(None, self.jobs.asker, job_name)
        schedule = schedule_of(asker, name, given, cron, zone, misfire, options)
        await self._desk_of(job_name).put_schedule(schedule)

    async def retry(self, job: str | Callable[..., Any], job_id: str) -> None:
        """One more round for a job that was given up or cancelled. Raises JobMissing, JobStateError, PublishError."""
        await self._desk_of(self._job_name(job)).retry(job_id)

    async def run_now(self, job: str | Callable[..., Any], job_id: str) -> None:
        """A job that waits for its time, or for its retry, does not. Raises JobMissing, JobStateError, PublishError."""
        await self._desk_of(self._job_name(job)).run_now(job_id)

    def _desk_of(self, job: str) -> QueueDesk:
        queue = self._queue_of(job)
        if queue is None:
            raise InvalidJob(f"job {job!r} is not declared by this application: use @app.job")
        return self.desk(queue)

    async def job_stats(self, queue: str = DEFAULT_QUEUE, *, last: str | float = "5m") -> QueueStats:
        """What waits, runs and ended, how fast and how well, and how old the oldest is, by type; see `QueueStats`."""
        return await self.desk(queue).stats(last)

    async def health_check(self, queue: str = DEFAULT_QUEUE, *, timeout: str | float = "10s") -> QueueHealth:
        """Of the connection and of a queue; it says what is wrong instead of raising it."""
        return await self.desk(queue).health_check(timeout)

    async def job_events(
        self,
        queue: str = DEFAULT_QUEUE,
        *,
        kinds: Collection[str] = (),
        types: Collection[str] = (),
        since: str | float | None = None,
        after: Mapping[int, int] | None = None,
    ) -> AsyncIterator[JobEvent]:
        """`async for event in app.job_events(...)`: what happens to the jobs of a queue, without end.

        `kinds`: completed, failed, cancelled, retrying, stalled, progress; all when none are given. `since`: so long ago, else from now;
        `after`: offsets of the store by partition, as the last events that were handled have them in `at`, to go on behind them.
        """
        from pipeline.jobs.events import Source, check_kinds, follow
        from pipeline.model.durations import parse_duration_ms

        wanted = check_kinds(kinds)
        since_ms = None if since is None else self.jobs.now_ms() - parse_duration_ms(since, "since")
        desk = self.desk(queue)
        source = Source(
            self.cluster,
            desk.topics,
            desk.unpack,
            self.settings.broker.startswith("memory://"),
            f"{self.name}.jobs",
        )
        events = follow(source, wanted, since_ms, after)
        try:
            async for event in events:
                if not types or event.type in types:
                    yield event
        finally:
            with suppress(RuntimeError):
                await events.aclose()  # type: ignore[attr-defined]
