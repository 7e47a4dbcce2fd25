"""Keeps short what a new owner reads of a store: now and then all that still counts is written once more, behind the rest.

A store's log grows by some records for each job, and compaction leaves at least those of the last hour: the next owner of a busy queue
would read millions of them, of which few still count. So when the floor lies far behind the end, all entries of the board are gone
through, some at a time, and those that were not written since are written again, as they are. Once that is acknowledged nothing
counts that lies below the offset at which it began: that is the new floor. It goes into the commit (`core.store_scan.Floor`), so it
holds on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Entry
from pipeline.core.jobs.job import Finished, Job
from pipeline.core.jobs.ticks import Ticking
from pipeline.model.jobs import DedupWindow, JobDuplicate, JobEntry, ScheduleRecord
from pipeline.model.store_keys import dedup_key, job_key, schedule_key

Counting = Finished | DedupWindow | Ticking | ScheduleRecord


class Sweep:
    """Of one board. `floor`: nothing below it counts.

    It begins when more than `every` records lie above the floor, and `times` as many as jobs are known: so much is read at most, and a
    quarter is written in addition at most. A step goes through `at_once` entries.
    """

    __slots__ = ("_board", "_from", "_left", "floor")
    every, times, at_once = 50_000, 4, 2_000

    def __init__(self, board: Board, floor: int) -> None:
        self.floor = floor
        self._board = board
        self._from = floor
        self._left: Iterator[Counting] | None = None

    def step(self, end: int) -> int | None:
        """Call it as often as is committed. `end`: what is written from now on lies there or behind.

        An offset: nothing below it counts once all that the board has given out is acknowledged; then set `floor`.
        """
        if self._left is None:
            if end - self.floor <= self.every + self.times * len(self._board.jobs):
                return None
            self._begin(end)
        assert self._left is not None
        seen = 0
        for each in islice(self._left, self.at_once):
            seen += 1
            self._again(each)
        if seen == self.at_once:
            return None
        self._left = None
        return self._from

    def _begin(self, end: int) -> None:
        board = self._board
        board.ledger.sweep += 1
        self._from = end
        schedules = board.schedules
        self._left = iter(
            [*board.jobs.values(), *board.dedup.windows.values(), *schedules.by_name.values(), *schedules.held.values()]
        )

    def _again(self, each: Counting) -> None:
        """Unless it was written since, or does not count any more."""
        board = self._board
        if isinstance(each, Job):
            if board.jobs.get(each.id) is each and each.written and each.sweep != board.ledger.sweep:
                board.ledger.write_again(each)
        elif isinstance(each, JobDuplicate):
            if board.jobs.get(each.id) is each:
                self._entry(job_key(each.id), each)
        elif isinstance(each, DedupWindow):
            if board.dedup.windows.get((each.type, each.dedup_id)) is each:
                self._entry(dedup_key(each.type, each.dedup_id), each)
        elif isinstance(each, Ticking):
            if board.schedules.by_name.get(each.schedule.name) is each:
                self._entry(schedule_key(each.schedule.name), each.record())
        elif board.schedules.held.get(each.schedule.name) is each:
            self._entry(schedule_key(each.schedule.name), each)

    def _entry(self, key: bytes, entry: JobEntry) -> None:
        ledger = self._board.ledger
        ledger.effects.append(Entry(key, ledger.packing.pack(entry), again=True))
