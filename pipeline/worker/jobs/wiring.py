"""How a queue's subscription gets its executor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipeline.model.permissions import Permissions
from pipeline.topology import Layout
from pipeline.worker.engine import Engine
from pipeline.worker.jobs.boards import Opening
from pipeline.worker.jobs.hosting import JobExecutor, JobParts
from pipeline.worker.jobs.strangers import reading

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.model.job_types import JobQueue


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
        reading(app.cluster, state, f"{app.name}.jobs"),
        Permissions.of(app.settings.permissions),
        app.blobs,
    )
    for declared in queue.types.values():
        missing = parts.permissions.missing(declared.policy.permissions)
        if missing:
            engine.log.warning(
                "jobs of this type become dead letters: this worker lacks permissions (PIPELINE_PERMISSIONS)",
                type=declared.name, missing=missing,
            )  # fmt: skip
    return JobExecutor(engine, parts, opening, loop)
