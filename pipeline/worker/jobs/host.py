"""One partition's board at work, and what belongs to it."""

from __future__ import annotations

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.sweeping import Sweep
from pipeline.core.store_scan import Floor
from pipeline.core.unit import Unit
from pipeline.model.jobs import JobEnding
from pipeline.worker.jobs.writing import StoreWriter

REPLAYED = -2
"""The numbers of replayed jobs go down from here: they stand where others have their offset in the inbox."""


class Host:
    """`open`: deliveries by the offset that the board knows them by. `strangers`: entries of others that were written over.

    `dropped`: it is not ours any more, and its executor has seen that. `trouble`: why its writes do not get through, as was told.
    """

    __slots__ = (
        "_swept",
        "board",
        "dropped",
        "endings",
        "open",
        "replayed",
        "strangers",
        "sweep",
        "trouble",
        "unit",
        "writer",
    )

    def __init__(self, unit: Unit, board: Board, writer: StoreWriter, floor: int) -> None:
        self.unit = unit
        self.board = board
        self.writer = writer
        self.sweep = Sweep(board, floor)
        self._swept: tuple[int, int] | None = None
        self.open: dict[int, Delivery] = {}
        self.endings: list[tuple[Job, int, JobEnding]] = []
        self.replayed = REPLAYED
        self.strangers = 0
        self.trouble = ""
        self.dropped = False

    def number(self, delivery: Delivery) -> int:
        """What stands for its offset: that of the inbox, or of what was replayed a number of its own."""
        number = delivery.offset
        if delivery.lane != SOURCE:
            number, self.replayed = self.replayed, self.replayed - 1
        self.open[number] = delivery
        return number

    def swept(self, floor: int) -> None:
        """All that counts is with the writer a second time; the floor is there once it is acknowledged."""
        self._swept = floor, self.writer.issued

    def raise_floor(self) -> bool:
        """Ask as often as is committed. True: it is there."""
        if self._swept is None or self.writer.acknowledged < self._swept[1]:
            return False
        self.sweep.floor = self._swept[0]
        self.unit.floor = Floor(self._swept[0], self.unit.epoch)
        self._swept = None
        return True

    @property
    def sweeps(self) -> bool:
        """May it go on with that?"""
        return self._swept is None and not self.writer.troubled
