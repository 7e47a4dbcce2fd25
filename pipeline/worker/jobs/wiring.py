"""How a queue's subscription gets its executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.core.jobs.entries import Letter
from pipeline.core.unit import Unit
from pipeline.model.permissions import Permissions
from pipeline.topology import Layout
from pipeline.worker.alerting import Alerts
from pipeline.worker.engine import Engine
from pipeline.worker.jobs.boards import Opening
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.hosting import JobExecutor, JobParts
from pipeline.worker.jobs.letters import alert_of
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
    target_of: Callable[[JobQueue], str | None],
    alerts: Alerts,
) -> JobExecutor:
    """`target_of`: how child processes of a queue find the application; None: handlers run in threads instead."""
    from pipeline.codec.jobs import InboxCodec, StoreCodec

    state = place.topics.state
    assert state is not None
    isolated = [name for name, declared in queue.types.items() if declared.policy.executor == "process"]
    processes: dict[str, JobProcesses] = {}
    if isolated and (target := target_of(queue)) is not None:
        queue = replace(queue, types=with_places(queue.types))
        for name in isolated:
            processes[name] = JobProcesses(queue.types[name], target, queue.name, loop, engine.log)
    parts = JobParts(
        queue,
        InboxCodec(app.codec, place.topics.source),
        StoreCodec(app.codec, state),
        lambda schema_id: app.codec.fetch(state, schema_id),
        reading(app.cluster, state, f"{app.name}.jobs"),
        Permissions.of(app.settings.permissions),
        Home(app.cluster.address, app.settings.prefix, app.enqueue),
        app.blobs,
        processes,
        _telling(alerts, place, queue),
    )
    for declared in queue.types.values():
        missing = parts.permissions.missing(declared.policy.permissions)
        if missing:
            engine.log.warning(
                "jobs of this type become dead letters: this worker lacks permissions (PIPELINE_PERMISSIONS)",
                type=declared.name, missing=missing,
            )  # fmt: skip
    return JobExecutor(engine, parts, opening, loop)


def _telling(alerts: Alerts, place: Layout, queue: JobQueue) -> Callable[[Unit, Letter], None]:
    """Hears of each dead letter that is acknowledged."""
    topic = place.topics.dead_letters

    def acknowledged(unit: Unit, letter: Letter) -> None:
        error, declared = letter.record.outcome.error, queue.types.get(letter.record.request.type)
        build = partial(alert_of, unit, topic, declared, letter)
        alerts.dead_letter(place.group, topic, error.error_class if error is not None else "", build)

    return acknowledged
