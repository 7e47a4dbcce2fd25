"""The Faust app of the views: two agents, each a loop of take a batch, fold, write, wait for Kafka, acknowledge.

Faust's own habits that this works around (0.15.3): it acknowledges a record whose agent raised, so an exception loses
it (here: manual acknowledgement, and a supervisor that crashes the process, so that a restart reads it again); and it
commits offsets even when a changelog write failed (here: every write of a batch is awaited first). What it loses in a
rebalance: see `fetching`.
Importing this module imports Faust and mode, which patch and log: nothing else of the product imports it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import faust
from faust.serializers.codecs import dumps
from mode.supervisors import CrashingSupervisor

from pipeline.codec.avro import AvroCodec
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.views import avro, batch, metrics, rates, summaries
from pipeline.views.dead_letters import headers_of, tell
from pipeline.views.deadline import CRASH_S, STOP_S, leave_within
from pipeline.views.fetching import HoldingApp
from pipeline.views.policy import ViewsPolicy
from pipeline.views.tables import EntryTable, Writes, as_current
from pipeline.views.topology import STATE_TABLE, TOTALS_TABLE

log = logging.getLogger(__name__)

SUMMARY_RECORD, RATE_RECORD = "agent.run.RunSummary", "agent.run.RunRate"

Fold = Callable[[Writes, int, list[Any]], Awaitable[None]]
"""Fold the events of one partition, in order, and hand what follows from them to the writes."""


def by_partition(events: Iterable[Any]) -> dict[int, list[Any]]:
    """Faust events by source partition, in order."""
    out: dict[int, list[Any]] = {}
    for event in events:
        out.setdefault(event.message.partition, []).append(event)
    return out


def _record_ms(event: Any) -> int:
    return int((event.message.timestamp or 0) * 1_000)


class Views:
    """The app and what its two agents share."""

    def __init__(self, policy: ViewsPolicy, codec: AvroCodec, partitions: int) -> None:
        self.policy, self.codec, self.topics = policy, codec, policy.topics
        self.app = build_faust(policy, partitions)
        self.state = EntryTable(self.app, policy, STATE_TABLE, partitions)
        self.totals = EntryTable(self.app, policy, TOTALS_TABLE, partitions)
        source = avro.raw_topic(self.app, self.topics.source)
        partials = self.app.topic(self.topics.partials, key_type=str, key_serializer="raw", value_serializer="json")
        self._agent(source, "events", self._fold_events)
        self._agent(partials, "rates", self._fold_partials)

    def _agent(self, topic: Any, name: str, fold: Fold) -> None:
        async def agent(stream: faust.types.StreamT[Any]) -> None:
            try:
                async for taken in self._batches(stream):
                    writes = Writes(self.app)
                    for partition, events in by_partition(taken).items():
                        await fold(writes, partition, events)
                    await writes.settle(self.policy.delivery_timeout_ms / 1_000)
                    for event in taken:
                        event.ack()
            except Exception as error:
                log.error("The views worker ends, to be started again: %s: %s", type(error).__name__, error)
                leave_within(CRASH_S, "after a crash")
                raise

        self.app.agent(topic, name=f"{self.policy.group}.{name}", supervisor_strategy=CrashingSupervisor)(agent)

    async def _batches(self, stream: Any) -> AsyncIterator[list[Any]]:
        """Batches of what we still own: after a rebalance the new owner reads the rest from the committed offset."""
        policy = self.policy
        async for taken in stream.noack_take(policy.batch_records, within=policy.batch_wait_ms / 1_000):
            owned = self.app.consumer.assignment()
            mine = [event for event in taken if event.message.tp in owned]
            if mine:
                yield mine

    async def _fold_events(self, writes: Writes, partition: int, events: list[Any]) -> None:
        changes, dead = batch.Changes(), 0
        for event in events:
            error = await self._fold_event(changes, event)
            if error is not None:
                dead += 1
                await self._dead_letter(writes, event.message, error)
        now_ms = max(map(_record_ms, events))
        with as_current(events[-1]):
            for key, entry in changes.writes():
                await self.state.put(writes, partition, key, entry, now_ms)
            await self.state.sweep(writes, partition, now_ms, time.monotonic())
        for summary in changes.runs.values():
            value = self.codec.encode(
                summaries.fields(summary), topic=self.topics.summaries, record_name=SUMMARY_RECORD
            )
            await writes.send("summary", self.topics.summaries, summary["run_id"].encode(), value)
        for partial in changes.partials.values():
            key = rates.rate_key(partial["agent"], partial["tenant"], partial["minute"])
            await writes.send("partial", self.topics.partials, key.encode(), dumps("json", partial))
        metrics.RECORDS.labels("counted").inc(changes.counted)
        metrics.RECORDS.labels("seen").inc(len(events) - changes.counted - dead)
        metrics.RECORDS.labels("dead_letter").inc(dead)

    async def _fold_event(self, changes: batch.Changes, event: Any) -> Exception | None:
        """Fold one record; the error when it is the record's own fault. A registry that is away is not."""
        message = event.message
        try:
            name, fields = await avro.decode_dict(self.codec, self.topics.source, message.value)
            with as_current(event):
                record = batch.Decoded(message.partition, message.offset, name, fields)
                batch.fold_record(changes, self.state.get, record)
        except SchemaUnavailable:
            raise
        except (CodecError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            return error
        return None

    async def _dead_letter(self, writes: Writes, message: Any, error: Exception) -> None:
        tell(message, error)
        headers = headers_of(message, self.policy.group, error)
        await writes.send(
            "dead_letter", self.topics.dead_letters, message.key, message.value, message.partition, headers
        )

    async def _fold_partials(self, writes: Writes, partition: int, events: list[Any]) -> None:
        changed: dict[str, rates.Total] = {}
        now_ms = max(map(_record_ms, events))
        with as_current(events[-1]):
            for event in events:
                key = f"{partition}/{event.key}"
                changed[key] = rates.merge(changed.get(key) or self.totals.get(key), event.value)
            for key, total in changed.items():
                await self.totals.put(writes, partition, key, total, now_ms)
            await self.totals.sweep(writes, partition, now_ms, time.monotonic())
        for key, total in changed.items():
            value = self.codec.encode(rates.fields(total), topic=self.topics.rates, record_name=RATE_RECORD)
            await writes.send("rate", self.topics.rates, key.partition("/")[2].encode(), value)


class BoundedWorker(faust.Worker):
    """Faust's worker with an end to its stopping."""

    def _schedule_shutdown(self, signal: Any) -> None:
        leave_within(STOP_S, "after a signal")
        super()._schedule_shutdown(signal)

    def on_worker_shutdown(self) -> None:
        leave_within(STOP_S, "at the end")
        super().on_worker_shutdown()


def build_worker(app: faust.App) -> faust.Worker:
    """The worker that runs the app in this process; quiet, and leaving standard output alone."""
    app.finalize()
    worker = BoundedWorker(app, loglevel="WARNING", quiet=True, redirect_stdouts=False)
    worker.spinner = None
    return worker


def build_faust(policy: ViewsPolicy, partitions: int) -> faust.App:
    """A Faust app with the settings the views rely on. The topics exist already: nothing is declared from here."""
    store = "memory://" if policy.store == "memory" else "rocksdb://"
    return HoldingApp(
        policy.group,
        broker=[f"kafka://{address}" for address in policy.bootstrap.split(",")],
        store=store,
        datadir=policy.data_dir or None,
        topic_partitions=partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        broker_commit_interval=policy.commit_interval_ms / 1_000,
        broker_session_timeout=policy.session_timeout_ms / 1_000,
        broker_heartbeat_interval=policy.session_timeout_ms / 5_000,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=4 * policy.batch_records,
        stream_wait_empty=True,
        producer_acks=-1,
        web_enabled=policy.web_port > 0,
        web_bind="127.0.0.1",
        web_port=policy.web_port or 6066,
        autodiscover=False,
        worker_redirect_stdouts=False,
    )
