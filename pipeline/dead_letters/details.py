"""Everything about one dead letter, for people: decoded, with all its failures, and without what must not be shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.codec.scrub import scrub, tagged_texts
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.folding import fold
from pipeline.dead_letters.job_inputs import readable
from pipeline.dead_letters.pointing import PointsAt, points_at
from pipeline.dead_letters.query import Letter
from pipeline.dead_letters.states import id_of, position_of
from pipeline.model.cluster import Message
from pipeline.model.headers import HISTORY, LOG, POINTER_KIND, TRACEPARENT, headers_in
from pipeline.model.history import Attempt, parse
from pipeline.model.scrubbing import Sensitive


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that was done to a dead letter. `target`: partition and offset of what was written, None where nothing was."""

    action_id: str
    action: str
    outcome: str
    who: str
    at_ms: int
    target: tuple[int, int] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Details:
    """See the module. `revealed`: nothing was masked. `problem`: why the value is not decoded; only revealed it is shown, raw.
    `edited_to`: what took its place.

    `complete`: the history holds every attempt. `value`: the input of a job stands as the JSON that it is.
    """

    letter: Letter
    value: Any
    headers: dict[str, str | None]
    stack: str
    attempts: tuple[Attempt, ...]
    dropped: int
    complete: bool
    log: str
    trace_id: str | None
    schema: str | None
    actions: tuple[Action, ...]
    edited_to: tuple[int, int] | None
    revealed: bool = False
    problem: str = ""
    raw: Message | None = field(default=None, repr=False)
    points_at: PointsAt | None = None


HEADER_CHARACTERS = 4_096


def details(desk: Desk, message: Message, reveal: bool = False) -> Details:
    """Of a fetched dead letter that the index knows. Values and error texts are scrubbed unless `reveal`."""
    number = id_of(message.partition(), message.offset())
    letter = desk.letters([number])[number]
    shown = desk.values.show(message)
    by_name = dict(headers_in(message) or ())
    texts = {name: None if raw is None else raw.decode("utf-8", "replace") for name, raw in by_name.items()}
    value, hidden = shown.value, Sensitive()
    if not reveal:
        value = scrub(shown.value, shown.schema)
        if shown.problem:  # the tags are in the schema that is not known
            value = f"[{len(message.value() or b''):,} bytes, not decoded: what is personal in them is not known; --reveal shows them]"
        if shown.schema is not None:
            hidden = Sensitive(tagged_texts(shown.value, shown.schema))

    def safe(text: str | None) -> str:
        return (text or "") if reveal else hidden.scrub(text or "")

    history = parse(by_name.get(HISTORY))
    attempts = tuple(
        Attempt(a.number, a.failed_ms, a.error_class, a.error_type, safe(a.message), a.started_ms)
        for a in history.attempts
    )
    kept = {name: None if text is None else safe(text) for name, text in texts.items()}
    if not reveal:
        letter = _scrubbed(letter, hidden)
    return Details(
        letter=letter,
        value=readable(shown.type, value),
        headers={name: None if text is None else text[:HEADER_CHARACTERS] for name, text in kept.items()},
        stack=safe(texts.get("pl.error.stack")),
        attempts=attempts,
        dropped=history.dropped,
        complete=history.complete and len(attempts) == (letter.attempt or 0),
        log=safe(texts.get(LOG)),
        trace_id=_trace_id(texts.get(TRACEPARENT)),
        schema=texts.get("pl.schema"),
        actions=actions_on(desk, number),
        edited_to=_edited_to(desk, number),
        revealed=reveal,
        problem=shown.problem,
        raw=message,
        points_at=points_at(desk.cluster, letter, by_name) if POINTER_KIND in by_name else None,
    )


def _scrubbed(letter: Letter, hidden: Sensitive) -> Letter:
    """Folded anew of what is left: in the folded text a tagged value would not be found, where numbers in it were folded too."""
    key = None if letter.key is None else hidden.scrub(letter.key)
    if letter.message is None:
        return replace(letter, key=key)
    message = hidden.scrub(letter.message)
    return replace(letter, message=message, folded=fold(message), key=key)


def _trace_id(traceparent: str | None) -> str | None:
    """The second part of a W3C traceparent."""
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None


def actions_on(desk: Desk, number: int) -> tuple[Action, ...]:
    """Oldest first."""
    rows = desk.store.db.execute(
        "SELECT plan, action, outcome, who, at_ms, target_partition, target_offset, error FROM results WHERE letter = ? "
        "ORDER BY at_ms, number",
        (number,),
    )
    return tuple(Action(*(*row[:5], (row[5], row[6]) if row[5] >= 0 else None, row[7])) for row in rows)


def _edited_to(desk: Desk, number: int) -> tuple[int, int] | None:
    row = desk.store.db.execute("SELECT max(id) FROM letters WHERE edited_from = ?", (number,)).fetchone()
    return None if row[0] is None else position_of(row[0])
