"""Redrives that ended in the middle: their plans, which can be taken up while nobody did anything else about their letters.

A plan that is taken up sends under its own id, so that what it sent twice is recognised by origin and replay id. A new redrive of the
same letters has an id of its own: what the first had sent without a result then comes twice, under two ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.states import id_of, number_of
from pipeline.model.errors import PipelineError
from pipeline.replay.plan import ReplayPlan, from_text


@dataclass(frozen=True, slots=True)
class Unfinished:
    """`left`: letters that are open and have no result of this plan. `changed`: letters that something else was done about since."""

    file: Path
    plan_id: str
    left: int
    changed: int


def unfinished(desk: Desk) -> tuple[Unfinished, ...]:
    """Those that can be taken up: running them does what they were to do, and nothing else."""
    return tuple(found for found in _looked_at(desk) if found.left and not found.changed)


def forget_done(desk: Desk) -> None:
    """Plans whose letters are all dealt with, by whatever: to take one up would send them again."""
    for found in _looked_at(desk):
        if not found.left:
            found.file.unlink(missing_ok=True)


def _looked_at(desk: Desk) -> Iterator[Unfinished]:
    anywhere = desk.plan_path("any")
    if anywhere is None:
        return
    for file in sorted(anywhere.parent.glob("rp-*.json")):
        try:
            plan = from_text(file.read_bytes(), str(file))
        except (OSError, PipelineError):
            continue  # not ours to judge: `pipeline replay run` says what is wrong with it
        if plan.source.topic == desk.topics.dead_letters:
            yield Unfinished(file, plan.plan_id, *_counted(desk, plan))


def _counted(desk: Desk, plan: ReplayPlan) -> tuple[int, int]:
    """Of those without a result of this plan: (open and to be sent, in another state by now)."""
    numbers = [id_of(p, offset) for p, offsets in (plan.select.positions or {}).items() for offset in offsets]
    left = changed = 0
    for at in range(0, len(numbers), 500):
        part = numbers[at : at + 500]
        row = desk.store.db.execute(
            "SELECT total(state = ? AND ifnull(replay_count, 0) < ?), total(state <> ?) FROM letters l "
            f"WHERE id IN ({', '.join(map(str, part))}) "
            "AND NOT EXISTS (SELECT 1 FROM results WHERE letter = l.id AND plan = ?)",
            (number_of("open"), plan.replays_max, number_of("open"), plan.plan_id),
        ).fetchone()
        left += int(row[0])
        changed += int(row[1])
    return left, changed
