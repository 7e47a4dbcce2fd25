"""Entries that a stranger wrote over, a worker that was taken for dead: what is true is written once more, behind them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Entry
from pipeline.core.jobs.job import Job
from pipeline.model.store_keys import JOB, SCHEDULE, WINDOW, dedup_of, parts_of


def write_again(board: Board, keys: Iterable[bytes]) -> None:
    """Of these keys of the store: the entry as the board knows it, or a tombstone when it knows none."""
    for key in keys:
        kind, name = parts_of(key)
        if kind == JOB:
            _job(board, key, name)
        elif kind == WINDOW:
            window = board.dedup.windows.get(dedup_of(name))
            _entry(board, key, None if window is None else board.ledger.packing.pack(window))
        elif kind == SCHEDULE:
            ticking = board.schedules.by_name.get(name)
            record = board.schedules.held.get(name) if ticking is None else ticking.record()
            _entry(board, key, None if record is None else board.ledger.packing.pack(record))


def _job(board: Board, key: bytes, name: str) -> None:
    known = board.jobs.get(name)
    if not isinstance(known, Job):
        _entry(board, key, None if known is None else board.ledger.packing.pack(known))
    elif known.packed is not None:
        _entry(board, key, known.packed)
    else:
        board.ledger.write(known)


def _entry(board: Board, key: bytes, value: bytes | None) -> None:
    board.ledger.effects.append(Entry(key, value))
