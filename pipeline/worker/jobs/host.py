"""One partition's board at work, and what belongs to it."""

from __future__ import annotations

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.job import Job
from pipeline.core.unit import Unit
from pipeline.model.jobs import JobEnding
from pipeline.worker.jobs.writing import StoreWriter

REPLAYED = -2
"""The numbers of replayed jobs go down from here: they stand where others have their offset in the inbox."""


class Host:
    """`open`: deliveries by the offset that the board knows them by. `strangers`: entries of others that were written over.

    `dropped`: it is not ours any more, and its executor has seen that.
    """

    __slots__ = ("board", "dropped", "endings", "open", "replayed", "strangers", "unit", "writer")

    def __init__(self, unit: Unit, board: Board, writer: StoreWriter) -> None:
        self.unit = unit
        self.board = board
        self.writer = writer
        self.open: dict[int, Delivery] = {}
        self.endings: list[tuple[Job, int, JobEnding]] = []
        self.replayed = REPLAYED
        self.strangers = 0
        self.dropped = False

    def number(self, delivery: Delivery) -> int:
        """What stands for its offset: that of the inbox, or of what was replayed a number of its own."""
        number = delivery.offset
        if delivery.lane != SOURCE:
            number, self.replayed = self.replayed, self.replayed - 1
        self.open[number] = delivery
        return number
