"""A Faust table written by the batch, and the records that a batch sends, each awaited before anything is acknowledged.

`table[key] = value` would hide whether the changelog record arrived, find the partition in a context that a batch does not
have, and pass every record through Faust's producer buffer, which holds up the
fetching whenever more than 100 records wait in it (a batch sends more than that).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faust
from faust import streams as faust_streams
from faust.serializers.codecs import dumps
from faust.types import TP

from pipeline.model.cluster import Headers
from pipeline.views import metrics
from pipeline.views.policy import ViewsPolicy
from pipeline.views.topology import changelog

_SWEEP_EVERY_S = 600.0


@contextmanager
def as_current(event: Any) -> Iterator[None]:
    """Let Faust's RocksDB store find the partition: it asks for the event in hand, which a batch does not set."""
    token = faust_streams._current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        faust_streams._current_event.reset(token)


class Writes:
    """The records of one batch: sent in order, awaited together."""

    def __init__(self, app: faust.App) -> None:
        self._producer = app.producer
        self._sent: list[asyncio.Future[Any]] = []
        self._changelogs: list[tuple[Any, asyncio.Future[Any]]] = []

    async def send(
        self,
        kind: str,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        headers: Headers | None = None,
    ) -> asyncio.Future[Any]:
        """Hand a record to the producer (partition None = by key); `kind` is what it is counted as."""
        sending: Any = await self._producer.send(topic, key, value, partition, None, headers)  # type: ignore[arg-type]
        metrics.WRITES.labels(kind).inc()
        self._sent.append(sending)
        return sending  # type: ignore[no-any-return]

    async def changelog(self, table: EntryTable, partition: int, key: str, value: Any) -> None:
        """Write a table's entry (None = forgotten) to its changelog."""
        raw = None if value is None else dumps("json", value)
        sending = await self.send("changelog", table.changelog, dumps("json", key), raw, partition)
        self._changelogs.append((table, sending))

    async def settle(self, timeout_s: float) -> None:
        """Wait until Kafka has all of them. Raises when one failed or did not arrive in time."""
        await asyncio.wait_for(asyncio.gather(*self._sent), timeout_s)
        newest: dict[tuple[Any, int], int] = {}
        for table, sending in self._changelogs:
            stored = sending.result()
            newest[table, stored.partition] = stored.offset
        for (table, partition), offset in newest.items():
            table.persisted(partition, offset)


class EntryTable:
    """Entries by key, each with when it was last touched (record time), of which those untouched for long are forgotten."""

    def __init__(self, app: faust.App, policy: ViewsPolicy, name: str, partitions: int) -> None:
        self.changelog = changelog(policy, name)
        topic = app.topic(
            self.changelog, partitions=partitions, compacting=True, key_serializer="json", value_serializer="json"
        )
        self.table: Any = app.Table(name, partitions=partitions, changelog_topic=topic, key_type=str)
        self._keep_ms = policy.keep_days * 86_400_000
        self._swept: dict[int, float] = {}

    def get(self, key: str) -> Any:
        """The entry, or None. For RocksDB inside `as_current`."""
        found = self.table.data.get(key)
        return found["entry"] if found else None

    async def put(self, writes: Writes, partition: int, key: str, entry: Any, now_ms: int) -> None:
        """Set an entry here and in the changelog."""
        value = {"entry": entry, "at": now_ms}
        self.table.data[key] = value
        await writes.changelog(self, partition, key, value)

    def persisted(self, partition: int, offset: int) -> None:
        """The changelog has everything of the partition up to this offset: where RocksDB recovers from."""
        self.table.data.set_persisted_offset(TP(self.changelog, partition), offset)

    async def sweep(self, writes: Writes, partition: int, now_ms: int, now_s: float) -> None:
        """Forget entries of the partition not touched for `keep_days`, looking at most every ten minutes."""
        if now_s - self._swept.setdefault(partition, now_s) < _SWEEP_EVERY_S:
            return
        self._swept[partition] = now_s
        prefix, limit = f"{partition}/", now_ms - self._keep_ms
        old = [key for key, value in self.table.data.items() if key.startswith(prefix) and value["at"] < limit]
        for key in old:
            del self.table.data[key]
            await writes.changelog(self, partition, key, None)
        metrics.EVICTED.inc(len(old))
