"""How a queue's subscription gets its executor."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.model.permissions import Permissions
from pipeline.topology import Layout
from pipeline.worker.engine import Engine
from pipeline.worker.jobs.boards import Opening
from pipeline.worker.jobs.hosting import JobExecutor, JobParts
from pipeline.worker.jobs.processes import JobProcesses, with_places
from pipeline.worker.jobs.strangers import reading

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.model.job_types import JobQueue


def executor_of(
    app: Pipeline,
    queue: JobQueue,
    place: Layout,
    engine: Engine,
    opening: Opening,
    loop: asyncio.AbstractEventLoop,
    target: str | None,
) -> JobExecutor:
    """`target`: how child processes find the application; None: handlers run in threads instead."""
    from pipeline.codec.jobs import InboxCodec, StoreCodec

    state = place.topics.state
    assert state is not None
    processes: dict[str, JobProcesses] = {}
    if target is not None:
        queue = replace(queue, types=with_places(queue.types))
        processes = {
            name: JobProcesses(declared, target, queue.name, loop, engine.log)
            for name, declared in queue.types.items()
            if declared.policy.executor == "process"
        }
    parts = JobParts(
        queue,
        InboxCodec(app.codec, place.topics.source),
        StoreCodec(app.codec, state),
        lambda schema_id: app.codec.fetch(state, schema_id),
        reading(app.cluster, state, f"{app.name}.jobs"),
        Permissions.of(app.settings.permissions),
        app.blobs,
        processes,
    )
    for declared in queue.types.values():
        missing = parts.permissions.missing(declared.policy.permissions)
        if missing:
            engine.log.warning(
                "jobs of this type become dead letters: this worker lacks permissions (PIPELINE_PERMISSIONS)",
                type=declared.name, missing=missing,
            )  # fmt: skip
    return JobExecutor(engine, parts, opening, loop)
