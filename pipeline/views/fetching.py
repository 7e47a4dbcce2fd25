"""Faust's consumer, made to take no record of a stream before a rebalance is over.

Faust (0.15.3) lets the streams' partitions be fetched first, seeks them to the committed offsets next, and empties the
streams' queues last. What is fetched in between is lost: it is neither processed nor read again, and where nothing was
committed yet the next commit passes it. The same goes for standby changelogs. Here they wait for the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import faust
from aiokafka.errors import ConsumerStoppedError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP


class _Thread(driver.AIOKafkaConsumerThread):
    """Takes fetched records of the partitions that are active when it takes them, never in a rebalance.

    Faust's own waits for the records of a set that changes meanwhile, and takes an empty one for all partitions.
    """

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Any:
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError()
        if not self.consumer.flow_active:
            return {}
        with fetcher._subscriptions.fetch_context():
            if taken := await self._take(fetcher, active_partitions, max_records):
                return taken
            waiter = fetcher._create_fetch_waiter()
            done, _ = await asyncio.wait([waiter], timeout=timeout)
            if not done:
                waiter.cancel()
                return {}
            waiter.result()  # raises what the fetch ran into
            return await self._take(fetcher, active_partitions, max_records)

    async def _take(self, fetcher: Any, active_partitions: set[TP], max_records: int | None) -> Any:
        """What is there now. Nothing else of this thread runs in between: with `timeout=0` there is no waiting."""
        wanted = frozenset(active_partitions)
        if not wanted or not self.consumer.flow_active or fetcher._subscriptions.reassignment_in_progress:
            return {}
        return await fetcher.fetched_records(wanted, timeout=0, max_records=max_records)


class HoldingConsumer(driver.Consumer):
    """Resumes changelogs that are being restored at once, all other partitions when `release` is called."""

    _held: set[TP]

    def _reset_state(self) -> None:
        super()._reset_state()
        self._held = set()

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        wanted = set(tps)
        tables: Any = self.app.tables
        restored = wanted & tables.recovery.active_tps
        super().resume_partitions(restored)
        self._held |= wanted - restored

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        paused = set(tps)
        self._held -= paused
        super().pause_partitions(paused)

    def on_buffer_drop(self, tp: TP) -> None:
        # A queue that is emptied by a rebalance reports the drop too: that must not make the partition active.
        if tp in self._paused_partitions:
            self._buffered_partitions.discard(tp)
        else:
            super().on_buffer_drop(tp)

    def release(self) -> None:
        """The rebalance is over: positions are set and queues are empty."""
        released, self._held = self._held, set()
        super().resume_partitions(released)


class _Transport(driver.Transport):
    Consumer = HoldingConsumer


class HoldingApp(faust.App):
    """A Faust app whose streams lose nothing when a worker joins, leaves or restarts."""

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def on_rebalance_end(self) -> None:
        super().on_rebalance_end()
        cast(HoldingConsumer, self.consumer).release()
