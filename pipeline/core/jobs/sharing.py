"""What one process may run at once, shared out between the boards of its partitions: places in all, and of each type.

A board knows its own jobs only. So before boards take, whoever has them all says how many each may: equal parts of what is free,
none larger than what the board has for it, and what can't be divided goes first to those that were given nothing for the longest time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.job import Job, Kind


def parts_of(free: int, wanted: Sequence[int]) -> list[int]:
    """So much for each: never more than it wants, nothing left over while somebody wants more. Of a rest the first get one each."""
    level, left = 0, max(0, free)
    for done, want in enumerate(sorted(wanted)):
        level = left // (len(wanted) - done)
        if want > level:
            break
        left -= want
        level = want
    parts = [min(want, level) for want in wanted]
    rest = max(0, free) - sum(parts)
    for index, part in enumerate(parts):
        if rest and part < wanted[index]:
            parts[index] += 1
            rest -= 1
    return parts


class Sharing:
    """Who was given a place when (by the number of the call) is kept for boards here, and for types in their `Kind.served`."""

    def __init__(self) -> None:
        self._calls = 0
        self._served: dict[Board, int] = {}

    def take(
        self, boards: Sequence[Board], able: Sequence[Board], room: int, elsewhere: Mapping[str, int], now_ms: int
    ) -> list[tuple[Board, Job]]:
        """Jobs that start now, with their boards. `able`: those that may take; all `boards` count for the limits of types.

        `room`: places of the process that are not taken by what runs; `elsewhere`: what runs of each type and is on none of the boards.
        """
        started: list[tuple[Board, Job]] = []
        for board in able:
            if board.chosen.confirmed:  # their places are taken since they were chosen
                started += [(board, job) for job in board.take(len(board.chosen), now_ms)]
        room -= len(started) + sum(len(board.chosen) for board in boards)
        self._served = {board: self._served.get(board, 0) for board in boards}
        waiting = [board for board in able if len(board.lanes)]
        while waiting and room > 0:
            self._calls += 1
            waiting.sort(key=self._served.__getitem__)
            _limit(boards, waiting, elsewhere)
            parts = parts_of(room, [len(board.lanes) for board in waiting])
            taken = [self._from(board, part, started, now_ms) for board, part in zip(waiting, parts, strict=True)]
            room -= sum(taken)
            # One that left a place unused has nothing more that may run; the others are asked for it.
            waiting = [
                each for each, part, took in zip(waiting, parts, taken, strict=True) if took == part and len(each.lanes)
            ]
        return started

    def _from(self, board: Board, part: int, started: list[tuple[Board, Job]], now_ms: int) -> int:
        """How many places it took: also for jobs that start only when it is written that they do."""
        if not part:
            return 0
        before = len(board.chosen)
        jobs = board.take(before + part, now_ms)
        taken = len(jobs) + len(board.chosen) - before
        if taken:
            self._served[board] = self._calls
        for kind in {job.kind for job in jobs if job.kind.policy.concurrency}:
            kind.served = self._calls
        started += [(board, job) for job in jobs]
        return taken


def _limit(boards: Sequence[Board], waiting: Sequence[Board], elsewhere: Mapping[str, int]) -> None:
    """Of types with a limit each board may run what it runs, and its part of what is free."""
    wanting: dict[str, list[Kind]] = {}
    for board in waiting:
        for kind in board.kinds.values():
            if kind.queued and kind.policy.concurrency:
                wanting.setdefault(kind.name, []).append(kind)
    for name, kinds in wanting.items():
        running = sum(board.kinds[name].running for board in boards if name in board.kinds)
        kinds.sort(key=lambda kind: kind.served)
        free = kinds[0].policy.concurrency - running - elsewhere.get(name, 0)
        for kind, part in zip(kinds, parts_of(free, [kind.queued for kind in kinds]), strict=True):
            kind.limit = kind.running + part
