"""Several dead letters of one record, and which of them a redrive sends: the edited one, else that of its last death.

In one plan they would share an identity (origin and replay id): the lane runs the first that comes and settles the others unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.redrive_plan import Origin
from pipeline.dead_letters.states import position_of

OTHER_VERSION = "another version of the same record counts, an edited one or that of a later death"
Death = tuple[int, str | None, int | None, str | None]
"""Partition, origin topic and offset, and the replay that the record died in: its twins and edited versions have the same."""


def one_version_each(desk: Desk, group: str, letters: Sequence[Origin]) -> list[Origin]:
    """These letters of the group without other versions of their records, in the same order."""
    return newest(letters, _edited(desk, group))


def _edited(desk: Desk, group: str) -> set[Death]:
    rows = desk.store.db.execute(  # +: not by the group's index, which has all of its letters
        "SELECT id, origin_topic, origin_offset, replay_id FROM letters WHERE edited_from IS NOT NULL AND +grp = ?",
        (group,),
    )
    return {(position_of(row[0])[0], *row[1:]) for row in rows}


def newest(letters: Sequence[Origin], edited: AbstractSet[Death]) -> list[Origin]:
    """`edited`: deaths that have an edited version, also where that one is not chosen: a twin of the letter that it was made of, which
    a killed worker wrote a second time, is as old as that. Twins without one have the same bytes and go together."""
    kept = [letter for letter in letters if letter.edited or _death(letter) not in edited]
    best: dict[tuple[int, str | None, int | None], Origin] = {}
    for letter in kept:
        record = _death(letter)[:3]
        known = best.get(record)
        if known is None or _rank(letter) > _rank(known):
            best[record] = letter
    return [letter for letter in kept if _same_bytes(letter, best[_death(letter)[:3]])]


def _death(letter: Origin) -> Death:
    return position_of(letter.number)[0], letter.origin_topic, letter.origin_offset, letter.replay_id


def _rank(letter: Origin) -> tuple[bool, bool, int, int]:
    """An edit is what the operator wants to run, unless it did and what came of it is chosen too."""
    return letter.state != "redriven", letter.edited, letter.replay_count, letter.number


def _same_bytes(letter: Origin, best: Origin) -> bool:
    return letter is best or (not (letter.edited or best.edited) and _death(letter) == _death(best))
