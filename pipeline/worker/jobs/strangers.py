"""What others wrote to a store that is ours: workers that were taken for dead and woke up. What is true is written over it.

    gap between our own offsets, or a look now and then --> read it --> keys that are not from us --> `write_again`

The time for it is the store's `min.compaction.lag.ms`: until then the entry that the stranger wrote over is still there for an owner
that comes after us and knows from its epoch what to believe. (A stranger that writes before our first entry, or behind our last
one, leaves no gap: hence the looks.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pipeline.core.jobs.repairing import write_again
from pipeline.core.store_scan import strangers_among
from pipeline.model.cluster import Cluster, Headers, TopicPartition
from pipeline.model.errors import PipelineError
from pipeline.model.headers import headers_in
from pipeline.worker.jobs.host import Host

LOOK_MS = 600_000
"""So often the end of a store is looked at, also when nothing of ours was written."""
AGAIN_S = 5.0
POLL_RECORDS, POLL_S = 1_000, 0.25
READ_S = 30.0

Records = list[tuple[bytes | None, Headers | None]]
Read = Callable[[int, int, int | None], tuple[Records, int]]
"""Key and headers of a partition's records from this offset to before that one (None: to its end), and up to where it was read.
May wait."""


class Strangers:
    """Owned by the engine's thread; one look at a time. `repaired` is told when there is something to write."""

    def __init__(self, read: Read, loop: asyncio.AbstractEventLoop, repaired: Callable[[], None], log: Any) -> None:
        self._read = read
        self._loop = loop
        self._repaired = repaired
        self._log = log
        self._looking: asyncio.Task[None] | None = None
        self._looked_ms: dict[Host, int] = {}

    def mind(self, hosts: Iterable[Host], now_ms: int) -> None:
        """Look where there is a reason to. Call it as often as is committed."""
        if self._looking is not None:
            return
        known, self._looked_ms = self._looked_ms, {host: self._looked_ms.get(host, now_ms) for host in hosts}
        for host, at_ms in self._looked_ms.items():
            if host.writer.gaps:
                first, until = host.writer.gaps.popleft()
            elif host in known and now_ms - at_ms >= LOOK_MS:
                first, until = host.writer.seen, None
                self._looked_ms[host] = now_ms
            else:
                continue
            self._looking = self._loop.create_task(self._look(host, first, until))
            return

    async def _look(self, host: Host, first: int, until: int | None) -> None:
        unit = host.unit
        try:
            records, at = await self._loop.run_in_executor(None, partial(self._read, unit.partition, first, until))
            if until is None:
                host.writer.seen = max(host.writer.seen, at)
            keys, epoch = strangers_among(records, unit.epoch)
            if keys and unit.open:
                self._found(host, keys, epoch)
        except PipelineError as error:
            self._log.warning(
                "a store can't be read: it is looked at again", partition=unit.partition, error=str(error)
            )
            await asyncio.sleep(AGAIN_S)
            if until is not None:
                host.writer.gaps.appendleft((first, until))
        finally:
            self._looking = None

    def _found(self, host: Host, keys: list[bytes], epoch: int) -> None:
        self._log.warning(
            "a store of ours was written to by others", partition=host.unit.partition, entries=len(keys),
            epoch=epoch, own_epoch=host.unit.epoch,
        )  # fmt: skip
        host.strangers += len(keys)
        if epoch < host.unit.epoch:  # else it is us who are the stranger, and will hear of it
            write_again(host.board, keys)
            self._repaired()

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()


def reading(cluster: Cluster, topic: str, client_id: str) -> Read:
    """Reads with a client of its own each time: it is seldom."""

    def read(partition: int, first: int, until: int | None) -> tuple[Records, int]:
        tp = TopicPartition(topic, partition)
        reader, found = cluster.reader(client_id), Records()
        at, give_up_s = first, 0.0
        try:
            reader.assign({tp: first})
            while True:
                messages = reader.poll(POLL_RECORDS, POLL_S)
                found += [(m.key(), headers_in(m)) for m in messages if until is None or m.offset() < until]
                at = messages[-1].offset() + 1 if messages else max(at, reader.ended().get(tp, at))
                if (until is not None and at >= until) or (not messages and tp in reader.ended()):
                    return found, at
                now_s = time.monotonic()
                give_up_s = give_up_s or now_s + READ_S
                if now_s > give_up_s:
                    raise PipelineError(f"{topic}[{partition}] was not read from {first} within {READ_S:g} s")
        finally:
            reader.close()

    return read
