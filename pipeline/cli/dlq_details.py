"""How `pipeline dlq show` prints one dead letter: nothing in a record can steer the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.cli.output import clean, line
from pipeline.cli.why import clock, until
from pipeline.model.history import attempts

if TYPE_CHECKING:
    from pipeline.dead_letters.details import Details

VALUE_LINES, VALUE_CHARACTERS = 200, 20_000
_OWN = ("pl.", "__dlq.errors.")


def print_details(known: Details, now: int) -> None:
    letter = known.letter
    line(
        f"Dead letter {letter.position}, {letter.state}: {clean(letter.type)} of key {clean(letter.key or 'null')}",
        "bold",
    )
    places = (letter.origin_topic, letter.origin_partition, letter.origin_offset)
    origin = "/".join("?" if each is None else str(each) for each in places) if letter.origin_topic else None
    facts = (
        ("died", _moment(letter.died_ms, now)),
        ("first failed", _moment(letter.first_failed_ms, now)),
        ("group", letter.group),
        ("origin", origin),
        ("event", letter.event_id),
        ("run", letter.run_id),
        ("tenant", letter.tenant),
        ("agent", letter.agent),
        ("trace", known.trace_id),
        ("replayed", f"{letter.replay_count} times, last by {letter.replay_id}" if letter.replay_count else None),
        ("edited from", None if letter.edited_from is None else "{}:{}".format(*letter.edited_from)),
        ("edited to", None if known.edited_to is None else "{}:{}".format(*known.edited_to)),
        ("schema", known.schema),
        ("points at", known.points_at.sentence if known.points_at is not None else None),
    )
    for name, text in facts:
        if text:
            line(f"  {name + ':':<14}{clean(text)}")
    error = ": ".join(part for part in (letter.error_type, letter.message) if part)
    line(f"  {'error:':<14}{clean(error or 'not known')} (class {clean(letter.error_class or 'unknown')})", "red")
    _print_attempts(known, now)
    _block("stack", known.stack)
    _block("log of the last attempt", known.log)
    if known.points_at is None:
        _print_value(known)
    else:
        line(
            "It has no value: no client can read those offsets. Redriving it does nothing; cancel it when the bytes are dealt with."
        )
    others = {name: text for name, text in known.headers.items() if not name.startswith(_OWN)}
    if others:
        line("headers of its producer", "bold")
        for name, text in others.items():
            line(f"  {clean(name)}: {'null' if text is None else clean(text)}")
    for action in known.actions:
        target = "" if action.target is None else f", written to {action.target[0]}:{action.target[1]}"
        problem = f": {clean(action.error)}" if action.error else ""
        line(
            f"{clean(action.action)} by {clean(action.who)} {until(action.at_ms, now)}: {clean(action.outcome)}{target}{problem}"
        )


def _moment(ms: int | None, now: int) -> str | None:
    return None if ms is None or ms < 0 else f"{clock(ms)} ({until(ms, now)})"


def _print_attempts(known: Details, now: int) -> None:
    total = known.letter.attempt or 0
    line(
        attempts(total) + ("" if known.complete else f", {len(known.attempts)} of them on record"),
        "bold",
    )
    for index, attempt in enumerate(known.attempts):
        what = ": ".join(part for part in (attempt.error_type or attempt.error_class, attempt.message) if part)
        took = f", after {attempt.failed_ms - attempt.started_ms} ms" if attempt.started_ms else ""
        line(f"  {attempt.number}. {_moment(attempt.failed_ms, now) or ''}{took}: {clean(what)}")
        if index == 0 and known.dropped:
            line(f"  ... {known.dropped} left out ...", "dim")


def _block(title: str, text: str) -> None:
    if text:
        line(title, "bold")
        for each in text.splitlines():
            line(f"  {clean(each)}")


def _print_value(known: Details) -> None:
    from pipeline.dead_letters.forms import shown

    line("value" if known.revealed else "value (fields tagged pii or secret are masked: --reveal)", "bold")
    value = shown(known.value)
    text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str, ensure_ascii=False)
    for each in text[:VALUE_CHARACTERS].splitlines()[:VALUE_LINES]:
        line(f"  {clean(each)}")
    if len(text) > VALUE_CHARACTERS or text.count("\n") > VALUE_LINES:
        line("  ... cut; `pipeline dlq export` writes it whole", "dim")
    if known.problem:
        line(f"  not decoded: {clean(known.problem)}", "red")
