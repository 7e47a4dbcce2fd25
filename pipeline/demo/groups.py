"""What the demo runs: one topic of run events, and two groups that read it, each with its own lanes, handler and ledger topic."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.app import Pipeline
from pipeline.emit.fleet import POISON_TOOL, behaviour_of
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import RunEvent
from pipeline.model.outcome import Reject, Retry
from pipeline.model.topics import LaneTopics
from pipeline.model.views import Ledger
from pipeline.settings import Settings
from pipeline.topology import layout
from pipeline.worker.context import Context

BILLING, AUDIT = "billing", "audit"
GROUPS = (BILLING, AUDIT)
TIERS = {BILLING: ("1s", "2s", "4s"), AUDIT: ("1s", "3s")}
ATTEMPTS = {BILLING: 4, AUDIT: 3}
SESSION_TIMEOUT_S = 6.0
"""How long Kafka waits before it gives a silent worker's partitions to another one."""
WORK_S = 0.005
"""What billing one event takes, waiting for somebody else's service."""
AUDIT_FAILS_PER_MILLE = 15


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo runs: broker address, and the prefix that keeps its topics and groups apart from others'."""

    broker: str
    prefix: str = ""

    def settings(self) -> Settings:
        """The environment's settings (security and so on), with what the demo decides itself."""
        own = {
            "broker": self.broker,
            "prefix": self.prefix,
            "registry": "",
            "group_protocol": "classic",
            "instance_id": "",
            "session_timeout_s": SESSION_TIMEOUT_S,
            "log_format": "json",
        }
        return Settings.load().model_copy(update=own)


def ledger_topic(group: str) -> str:
    """Where a group's handler says what it did, one record for each that it processed."""
    return f"demo.ledger.{group}"


def worker_name(group: str, index: int) -> str:
    """A worker in the ledger; also its client id, by which the coordinator knows it."""
    return f"demo-{group}-{index}"


def _entry(ctx: Context, group: str, worker: str) -> Ledger:
    return Ledger(
        group=group,
        event_id=ctx.event_id,
        key=ctx.run_id,
        origin_topic=ctx.topic,
        origin_partition=ctx.partition,
        origin_offset=ctx.offset,
        attempt=ctx.attempt,
        action="done",
        worker=worker,
        at_ms=time.time_ns() // 1_000_000,
    )


def build(place: Place, worker: str = "demo") -> Pipeline:
    """The application with both groups; each worker process runs one of them."""
    app = Pipeline(worker, settings=place.settings())
    source = app.settings.events_topic

    @app.subscribe(
        source, group=BILLING, tiers=TIERS[BILLING], attempts=ATTEMPTS[BILLING], concurrency=200, timeout="30s"
    )
    async def bill(event: RunEvent, ctx: Context) -> None:
        """Fails, takes its time or never succeeds, as the event says."""
        behaviour = behaviour_of(event)
        await asyncio.sleep(WORK_S + behaviour.sleep_ms / 1000)
        if ctx.attempt <= behaviour.fails:
            raise RuntimeError(f"the price service did not answer (attempt {ctx.attempt} of {ctx.attempts})")
        await ctx.emit(ledger_topic(BILLING), ctx.key, _entry(ctx, BILLING, worker))

    @app.subscribe(source, group=AUDIT, tiers=TIERS[AUDIT], attempts=ATTEMPTS[AUDIT], concurrency=8, timeout="30s")
    def audit(event: dict[str, Any], ctx: Context) -> None:
        """A plain `def` on plain fields: sends poison away at once, asks for a retry now and then."""
        if event.get("tool") == POISON_TOOL and "arguments" in event:
            raise Reject("audit does not take documents of this kind")
        if ctx.attempt == 1 and _hiccup(event):
            raise Retry("the archive is busy", after="1s")
        ctx.emit(ledger_topic(AUDIT), ctx.key, _entry(ctx, AUDIT, worker))

    return app


def _hiccup(event: Mapping[str, Any]) -> bool:
    digest = hashlib.sha256(b"audit" + str(event["event_id"]).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < AUDIT_FAILS_PER_MILLE


def lanes_of(app: Pipeline, group: str) -> LaneTopics:
    """Real topic names of a group."""
    for subscription in app.subscriptions:
        if subscription.group == group:
            return layout(subscription, app.settings.prefix).topics
    raise ConfigurationError(f"group={group!r} is not one of the demo's: {', '.join(GROUPS)}")
