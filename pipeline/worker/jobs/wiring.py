"""How a queue's subscription gets its executor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipeline.model.errors import ConfigurationError
from pipeline.topology import Layout
from pipeline.worker.engine import Engine
from pipeline.worker.jobs.boards import Opening
from pipeline.worker.jobs.hosting import JobExecutor, JobParts

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.model.job_types import JobQueue


def prepare_queue(app: Pipeline, topics: tuple[str, str]) -> None:
    """Look up the contracts of inbox and store. May wait. Raises SchemaUnavailable, or ConfigurationError for what is missing."""
    from pipeline.codec.jobs import InboxCodec, StoreCodec

    inbox, state = topics
    for topic, missing in (
        (inbox, InboxCodec(app.codec, inbox).prepare()),
        (state, StoreCodec(app.codec, state).prepare()),
    ):
        if missing:
            raise ConfigurationError(
                f"topic {topic}: {', '.join(missing)} not registered: run `pipeline schemas register` for it"
            )


def executor_of(
    app: Pipeline, queue: JobQueue, place: Layout, engine: Engine, opening: Opening, loop: asyncio.AbstractEventLoop
) -> JobExecutor:
    from pipeline.codec.jobs import InboxCodec, StoreCodec

    state = place.topics.state
    assert state is not None
    parts = JobParts(
        queue,
        InboxCodec(app.codec, place.topics.source),
        StoreCodec(app.codec, state),
        lambda schema_id: app.codec.fetch(state, schema_id),
    )
    return JobExecutor(engine, parts, opening, loop)
