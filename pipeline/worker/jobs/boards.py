"""Stores that were read, on their way to boards."""

from __future__ import annotations

from collections import deque
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

SCHEMA_BYTES = 5


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
        for prefix, (key, value) in {v[:SCHEMA_BYTES]: (k, v) for k, v in scan.entries.items()}.items():
            if prefix in self._known:
                continue
            try:
                self._packing.unpack(key, value)
            except SchemaUnavailable as error:
                return error.schema_id or 0
            except CodecError:
                continue  # this one; see `restored`
            self._known.add(prefix)
        return None

    def restored(self, unit: Unit, scan: StoreScan, now_ms: int) -> Board:
        try:
            return self._board(unit, scan, now_ms)
        except CodecError:
            self._set_aside_unreadable(unit, scan)
            return self._board(unit, scan, now_ms)

    def _board(self, unit: Unit, scan: StoreScan, now_ms: int) -> Board:
        board = Board(self._queue.policy, self._policies, self._packing)
        board.careful = unit.unclean >= WATCHED
        board.committed = unit.lanes[SOURCE].tracker.position
        restoring = Restoring(board)
        restoring.entries(scan.entries.items())
        restoring.finish(now_ms)
        write_again(board, scan.strangers)
        return board

    def _set_aside_unreadable(self, unit: Unit, scan: StoreScan) -> None:
        """Entries that no queue wrote, or a disk spoilt: they stay where they are, and the others are jobs all the same."""
        for key, value in tuple(scan.entries.items()):
            try:
                self._packing.unpack(key, value)
            except CodecError as error:
                del scan.entries[key]
                self._log.error(
                    "an entry of the store can't be read and is left out",
                    topic=scan.topic, partition=unit.partition, key=key.decode("utf-8", "replace"), error=str(error),
                )  # fmt: skip
