"""Dead letters as plain data: one JSON object each, for files and for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.details import Details, details
from pipeline.dead_letters.forms import shown
from pipeline.dead_letters.query import Letter
from pipeline.dead_letters.states import id_of

BATCH = 1_000


def plain_letter(letter: Letter) -> dict[str, Any]:
    """What lists show, for `--json`. Times are milliseconds since the epoch."""
    found = asdict(letter)
    found["died_ms"] = letter.died_ms if letter.died_ms >= 0 else None
    found["edited_from"] = None if letter.edited_from is None else "{}:{}".format(*letter.edited_from)
    return {"position": letter.position, **found}


def plain_of(known: Details) -> dict[str, Any]:
    """Everything of one dead letter."""
    return {
        **plain_letter(known.letter),
        "value": shown(known.value),
        "problem": known.problem or None,
        "points_at": None if known.points_at is None else asdict(known.points_at),
        "schema": known.schema,
        "trace_id": known.trace_id,
        "stack": known.stack or None,
        "log": known.log or None,
        "attempts": [asdict(attempt) for attempt in known.attempts],
        "attempts_dropped": known.dropped,
        "attempts_complete": known.complete,
        "actions": [asdict(action) for action in known.actions],
        "edited_to": None if known.edited_to is None else "{}:{}".format(*known.edited_to),
        "headers": known.headers,
        "revealed": known.revealed,
    }


def export(
    desk: Desk, numbers: Sequence[int], reveal: bool = False, progress: Callable[[int, int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """One object per dead letter, scrubbed unless `reveal`, by partition and offset; those deleted by now are left out."""
    for at in range(0, len(numbers), BATCH):
        part = list(numbers[at : at + BATCH])
        known = set(desk.letters(part))
        for message in desk.fetch(part):
            if id_of(message.partition(), message.offset()) in known:
                yield plain_of(details(desk, message, reveal))
        if progress is not None:
            progress(at + len(part), len(numbers))
