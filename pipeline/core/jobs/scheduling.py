"""The schedules of a board: their ticks become jobs, each exactly once.

The id of a tick's job is made of the schedule and the tick, and its entry stands before the schedule's that goes on. Whoever comes
after a crash between the two fires the tick again and finds its job there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.jobs.entries import Entry
from pipeline.core.jobs.ticks import Ticking
from pipeline.core.jobs.timers import Timers
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_ids import tick_id
from pipeline.model.jobs import Schedule, ScheduleRecord
from pipeline.model.store_keys import schedule_key

if TYPE_CHECKING:
    from pipeline.core.jobs.board import Board


class Schedules:
    """`held`: schedules whose expression or zone nobody here understands (another version wrote them): kept, and they do not tick."""

    __slots__ = ("_board", "_number", "_timers", "by_name", "held")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._timers: Timers[Ticking] = Timers()
        self._number = 0
        self.by_name: dict[str, Ticking] = {}
        self.held: dict[str, ScheduleRecord] = {}

    def next_ms(self) -> int | None:
        return self._timers.next_ms()

    def due(self, now_ms: int, until_ms: int) -> bool:
        """Ticks up to `until_ms` fire, those of all schedules in their order. Are there more of them at once?"""
        until_ms = min(until_ms, now_ms)  # the clock may be behind the one by which a job came due
        due = self._timers.due(until_ms)
        if not due:
            return False
        policy = self._board.policy
        fired = [(tick_ms, at, each) for at, each in enumerate(due) for tick_ms in each.fire(now_ms, until_ms, policy)]
        for tick_ms, _, ticking in sorted(fired):
            self._fire(ticking, tick_id(ticking.schedule.name, tick_ms), tick_ms, now_ms, tick_ms)
        for ticking in due:
            self._write(ticking)
            self._time(ticking)
        return any(0 < each.next_ms <= until_ms for each in due)

    def put(self, schedule: Schedule, offset: int, now_ms: int) -> None:
        """A new schedule, or a changed one; the same again (each deploy declares it) changes nothing, missed ticks included."""
        known = self.by_name.get(schedule.name)
        if known is None or known.schedule != schedule:
            if known is not None:
                self._forget(known)
            record = ScheduleRecord(
                schedule, 0, 0 if known is None else known.last_ms, known is not None and known.paused
            )
            known = self.keep(record)
            known.next_ms = known.cron.next_after(now_ms) or 0
        self.held.pop(schedule.name, None)
        known.offset = offset
        key = schedule.request.key
        if key is not None:
            self._board.ledger.older_first(key)
        self._write(known, offset)
        self._time(known)

    def keep(self, record: ScheduleRecord) -> Ticking:
        """As its entry has it. With a key it is something of that key that comes due some day."""
        ticking = self.by_name[record.schedule.name] = Ticking(record, self._number)
        self._number += 1
        key = record.schedule.request.key
        if key is not None:
            self._board.keys.scheduled(key)
        self._time(ticking)
        return ticking

    def keep_or_hold(self, record: ScheduleRecord) -> None:
        try:
            self.keep(record)
        except ConfigurationError:
            self.held[record.schedule.name] = record

    def _forget(self, ticking: Ticking) -> None:
        self._timers.clear(ticking)
        key = ticking.schedule.request.key
        if key is not None:
            self._board.keys.came_due(key)

    def drop(self, name: str, offset: int) -> None:
        if self.held.pop(name, None) is None:
            self._forget(self.by_name.pop(name))
        self._board.ledger.effects.append(Entry(schedule_key(name), None, offset))

    def pause(self, name: str, paused: bool, offset: int, now_ms: int) -> None:
        """What would have ticked meanwhile is not missed: going on begins with the next tick."""
        ticking = self.by_name[name]
        if ticking.paused and not paused:
            ticking.next_ms = ticking.cron.next_after(now_ms) or 0
        ticking.paused = paused
        ticking.offset = offset
        self._write(ticking, offset)
        self._time(ticking)

    def run_now(self, name: str, at_ms: int, offset: int, now_ms: int) -> None:
        """Its id is made of the command, so that this is one job however often it is read."""
        ticking = self.by_name[name]
        ticking.offset = offset
        self._fire(ticking, tick_id(f"{name}!{offset}", at_ms), at_ms, now_ms)
        self._write(ticking, offset)

    def _fire(self, ticking: Ticking, job_id: str, at_ms: int, now_ms: int, tick_ms: int | None = None) -> None:
        """The job is written at once, since no request in the inbox would bring it back."""
        board = self._board
        if job_id not in board.jobs:
            board.ledger.at_once(board.accept(ticking.request(job_id, at_ms), -1, now_ms, tick_ms=tick_ms))

    def _write(self, ticking: Ticking, settles: int = -1) -> None:
        board = self._board
        value = board.ledger.packing.pack(ticking.record())
        board.ledger.effects.append(Entry(schedule_key(ticking.schedule.name), value, settles))

    def _time(self, ticking: Ticking) -> None:
        if ticking.next_ms and not ticking.paused:
            self._timers.set(ticking, ticking.next_ms)
        else:
            self._timers.clear(ticking)
