"""Stores that were read, on their way to boards."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.core.care import WATCHED
from pipeline.core.delivery import SOURCE
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Packing
from pipeline.core.jobs.repairing import write_again
from pipeline.core.jobs.restoring import Restoring
from pipeline.core.store_scan import StoreScan
from pipeline.core.unit import Unit
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.job_types import JobQueue
from pipeline.worker.engine import Engine

SCHEMA_BYTES = 5
SLICE_S = 0.02
"""So long at a time for boards that are made from their stores."""


class Opening:
    """Stores of units that are ours from now on, until the executor takes them."""

    def __init__(self) -> None:
        self.arrived: deque[tuple[Unit, StoreScan]] = deque()

    def restored(self, unit: Unit, scan: StoreScan) -> None:
        self.arrived.append((unit, scan))


class Boards:
    """Makes the board of a partition from its store."""

    def __init__(self, queue: JobQueue, packing: Packing, log: Any) -> None:
        self._queue = queue
        self._packing = packing
        self._policies = {name: declared.policy for name, declared in queue.types.items()}
        self._log = log
        self._known: set[bytes] = set()

    def unknown_schema(self, scan: StoreScan) -> int | None:
        """A schema that the store's entries were written with and that is not known here: an older or a newer worker's."""
        unknown = {value[:SCHEMA_BYTES] for value in scan.entries.values()} - self._known
        if not unknown:
            return None
        for key, value in scan.entries.items():
            if (prefix := value[:SCHEMA_BYTES]) not in unknown:
                continue
            try:
                self._packing.unpack(key, value)
            except SchemaUnavailable as error:
                return error.schema_id or 0
            except CodecError:
                continue  # this one; see `Restore`
            unknown.discard(prefix)
            self._known.add(prefix)
            if not unknown:
                break
        return None

    def restore(self, unit: Unit, scan: StoreScan, now_ms: int) -> Restore:
        board = Board(self._queue.policy, self._policies, self._packing)
        board.careful = unit.unclean >= WATCHED
        board.committed = unit.lanes[SOURCE].tracker.position
        return Restore(unit, scan, board, Restoring(board, scan.entries, partial(self._tell, unit, scan)).steps(now_ms))

    def _tell(self, unit: Unit, scan: StoreScan, key: bytes, error: CodecError) -> None:
        self._log.error(
            "an entry of the store can't be read and is left out",
            topic=scan.topic, partition=unit.partition, key=key.decode("utf-8", "replace"), error=str(error),
        )  # fmt: skip


class Restore:
    """A board on its way from its store, some at a time."""

    def __init__(self, unit: Unit, scan: StoreScan, board: Board, steps: Iterator[None]) -> None:
        self.unit = unit
        self.scan = scan
        self.board = board
        self.entries = len(scan.entries)
        self._steps = steps

    def proceed(self, until_s: float, clock: Callable[[], float]) -> bool:
        """Go on until then. True: it is all there."""
        for _ in self._steps:
            if clock() >= until_s:
                return False
        write_again(self.board, self.scan.strangers)
        return True


class Restores:
    """Boards of stores that were read, one after the other, a slice in each step of the engine: the others go on meanwhile.

    `fetch_schema` asks the registry for a schema of a store; it may wait, and raises SchemaUnavailable.
    """

    def __init__(
        self,
        engine: Engine,
        boards: Boards,
        opening: Opening,
        fetch_schema: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._engine = engine
        self._boards = boards
        self._arrived = opening.arrived
        self._fetch_schema = fetch_schema
        self._loop = loop
        self._looking_up: asyncio.Task[None] | None = None
        self._current: Restore | None = None

    def step(self, now_ms: int) -> Iterator[Restore]:
        """Those that are there, also of units that were let go meanwhile."""
        until_s = self._loop.time() + SLICE_S
        while self._looking_up is None and (self._arrived or self._current is not None):
            if self._current is None:
                unit, scan = self._arrived[0]
                if unit.open and (schema_id := self._boards.unknown_schema(scan)) is not None:
                    self._looking_up = self._loop.create_task(self._look_up(schema_id))
                    return
                self._arrived.popleft()
                self._current = self._boards.restore(unit, scan, now_ms)
            restore = self._current
            if restore.unit.open and not restore.proceed(until_s, self._loop.time):
                self._engine.wake()
                return
            self._current = None
            yield restore

    async def _look_up(self, schema_id: int) -> None:
        try:
            await self._loop.run_in_executor(None, self._fetch_schema, schema_id)
        except SchemaUnavailable as error:
            self._engine.log.warning("the registry does not answer: a store waits", error=str(error))
            await asyncio.sleep(1)
        except Exception as error:
            self._engine.fail(error)
            return
        self._looking_up = None
        self._engine.wake()

    def stop(self) -> None:
        if self._looking_up is not None:
            self._looking_up.cancel()
