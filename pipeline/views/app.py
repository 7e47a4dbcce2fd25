"""The Faust app of the views: two agents, each a loop of take a batch -> fold -> write -> wait for Kafka -> acknowledge.

Faust's own habits that this works around (0.15.3): it acknowledges a record whose agent raised, so an exception loses it
(here: manual acknowledgement, and a supervisor that crashes the process, so that a restart reads it again); and it
commits offsets even when a changelog write failed (here: every write of a batch is awaited first).
Importing this module imports Faust and mode, which patch and log: nothing else of the product imports it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import faust
from faust import streams as faust_streams
from mode.supervisors import CrashingSupervisor

from pipeline.codec.avro import AvroCodec
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.views import avro, batch, metrics, rates, summaries
from pipeline.views.deadline import CRASH_S, STOP_S, leave_within
from pipeline.views.dead_letters import send_dead_letter
from pipeline.views.policy import ViewsPolicy
from pipeline.views.topology import STATE_TABLE, TOTALS_TABLE, changelog

log = logging.getLogger(__name__)

SUMMARY_RECORD, RATE_RECORD = "agent.run.RunSummary", "agent.run.RunRate"
_SWEEP_EVERY_S = 600.0


class EntryTable:
    """A Faust table used by the batch: entries by key, each with when it was last touched, written to a partition by hand.

    Going through `table[key] = ...` would hide whether the changelog write arrived, and finds the partition in a context
    that a batch does not have.
    """

    def __init__(self, app: faust.App, policy: ViewsPolicy, name: str, partitions: int) -> None:
        topic = app.topic(changelog(policy, name), partitions=partitions, compacting=True, key_serializer="json", value_serializer="json")
        self.table: Any = app.Table(name, partitions=partitions, changelog_topic=topic, key_type=str)
        self._keep_ms = policy.keep_days * 86_400_000
        self._swept: dict[int, float] = {}

    def get(self, key: str) -> Any:
        """The entry, or None."""
        found = self.table.data.get(key)
        return found["entry"] if found else None

    def put(self, partition: int, key: str, entry: Any, now_ms: int) -> asyncio.Future[Any]:
        """Set an entry; the future is done when its changelog record is in Kafka."""
        value = {"entry": entry, "at": now_ms}
        self.table.data[key] = value
        return self.table.send_changelog(partition, key, value)  # type: ignore[no-any-return]

    def sweep(self, partition: int, now_ms: int, now_s: float) -> list[asyncio.Future[Any]]:
        """Forget entries of the partition not touched for `keep_days` (record time), at most every ten minutes."""
        if now_s - self._swept.setdefault(partition, now_s) < _SWEEP_EVERY_S:
            return []
        self._swept[partition] = now_s
        prefix, limit = f"{partition}/", now_ms - self._keep_ms
        old = [key for key, value in self.table.data.items() if key.startswith(prefix) and value["at"] < limit]
        for key in old:
            del self.table.data[key]
        metrics.EVICTED.inc(len(old))
        return [self.table.send_changelog(partition, key, None, value_serializer="raw") for key in old]


@contextmanager
def _as_current(event: Any) -> Iterator[None]:
    """Let Faust's RocksDB store find the partition: it looks at the event being processed, which a batch does not set."""
    token = faust_streams._current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        faust_streams._current_event.reset(token)


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
        self.source = avro.raw_topic(self.app, self.topics.source)
        self.partials = self.app.topic(self.topics.partials, key_type=str, key_serializer="raw", value_serializer="json")
        self.summaries = avro.raw_topic(self.app, self.topics.summaries)
        self.rates = avro.raw_topic(self.app, self.topics.rates)
        self.dead_letters = avro.raw_topic(self.app, self.topics.dead_letters)
        self._agent(self.source, "events", self._fold_events)
        self._agent(self.partials, "rates", self._fold_partials)

    def _agent(self, topic: Any, name: str, fold: Callable[[int, list[Any]], Any]) -> None:
        async def agent(stream: faust.types.StreamT[Any]) -> None:
            try:
                async for taken in self._batches(stream):
                    for partition, events in by_partition(taken).items():
                        await self._settle(await fold(partition, events))
                    for event in taken:
                        event.ack()
            except Exception as error:
                log.error("The views worker ends, to be started again: %s: %s", type(error).__name__, error)
                leave_within(CRASH_S, "after a crash")
                raise

        self.app.agent(topic, name=f"{self.policy.group}.{name}", supervisor_strategy=CrashingSupervisor)(agent)

    async def _batches(self, stream: Any) -> AsyncIterator[list[Any]]:
        """Batches of what we still own: after a rebalance the new owner reads the rest again from the committed offset."""
        policy = self.policy
        async for taken in stream.noack_take(policy.batch_records, within=policy.batch_wait_ms / 1_000):
            owned = self.app.consumer.assignment()
            mine = [event for event in taken if event.message.tp in owned]
            if mine:
                yield mine

    async def _settle(self, writes: list[asyncio.Future[Any]]) -> None:
        """Wait until Kafka has every write. Raises (and so ends the process) when one failed or none came in time."""
        await asyncio.wait_for(asyncio.gather(*writes), self.policy.delivery_timeout_ms / 1_000)

    async def _fold_events(self, partition: int, events: list[Any]) -> list[asyncio.Future[Any]]:
        changes, writes = batch.Changes(), []
        dead = 0
        for event in events:
            error = await self._fold_event(changes, event)
            if error is not None:
                writes.append(send_dead_letter(self.dead_letters, event.message, self.policy.group, error))
                dead += 1
        now_ms = max(map(_record_ms, events))
        with _as_current(events[-1]):
            writes += [self.state.put(partition, key, entry, now_ms) for key, entry in changes.writes()]
            writes += self.state.sweep(partition, now_ms, time.monotonic())
        writes += [self._send_summary(summary) for summary in changes.runs.values()]
        writes += [self._send_partial(partial) for partial in changes.partials.values()]
        metrics.RECORDS.labels("counted").inc(changes.counted)
        metrics.RECORDS.labels("seen").inc(len(events) - changes.counted - dead)
        metrics.RECORDS.labels("dead_letter").inc(dead)
        return writes

    async def _fold_event(self, changes: batch.Changes, event: Any) -> Exception | None:
        """Fold one record; the error when it is the record's own fault. A registry that is away is not."""
        message = event.message
        try:
            name, fields = await avro.decode_dict(self.codec, self.topics.source, message.value)
            with _as_current(event):
                batch.fold_record(changes, self.state.get, batch.Decoded(message.partition, message.offset, name, fields))
        except SchemaUnavailable:
            raise
        except (CodecError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            return error
        return None

    def _send_summary(self, summary: summaries.Summary) -> asyncio.Future[Any]:
        value = self.codec.encode(summaries.fields(summary), topic=self.topics.summaries, record_name=SUMMARY_RECORD)
        metrics.WRITES.labels("summary").inc()
        return self.summaries.send_soon(key=summary["run_id"].encode(), value=value)

    def _send_partial(self, partial: rates.Partial) -> asyncio.Future[Any]:
        key = rates.rate_key(partial["agent"], partial["tenant"], partial["minute"])
        metrics.WRITES.labels("partial").inc()
        return self.partials.send_soon(key=key, value=partial)

    async def _fold_partials(self, partition: int, events: list[Any]) -> list[asyncio.Future[Any]]:
        changed: dict[str, rates.Total] = {}
        now_ms = max(map(_record_ms, events))
        with _as_current(events[-1]):
            for event in events:
                key = f"{partition}/{event.key}"
                changed[key] = rates.merge(changed.get(key) or self.totals.get(key), event.value)
            writes = [self.totals.put(partition, key, total, now_ms) for key, total in changed.items()]
            writes += self.totals.sweep(partition, now_ms, time.monotonic())
        for key, total in changed.items():
            value = self.codec.encode(rates.fields(total), topic=self.topics.rates, record_name=RATE_RECORD)
            writes.append(self.rates.send_soon(key=key.partition("/")[2].encode(), value=value))
            metrics.WRITES.labels("rate").inc()
        return writes


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
    return faust.App(
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
