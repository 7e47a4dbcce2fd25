"""What `dead_letter="hold"` promises: nothing of a key runs behind a held record, and what a release sends back keeps its order.

What is held is read from dead letters and from the copies and marks in the replay lane, as an operator's tool finds them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.facts import Landed

Place = tuple[int, bytes | None]
"""Partition and key."""
Record = tuple[int, str]
"""Origin and replay id: sorts as the key's records must run."""


@dataclass(slots=True)
class _Letter:
    """A dead letter that follows a held one."""

    record: Record
    sent: bool = False


class Held:
    """Of one history. `wrong`: told of what is not so. `nobodys`: of each partition the owner's epoch that was out of the group when a
    release found nobody in it: what still comes from that one is a zombie's, though nobody has taken its place yet."""

    def __init__(self, wrong: Callable[[str, str], None], seen: Counter[str]) -> None:
        self._wrong = wrong
        self._met = seen
        self.heads: dict[Place, set[Record]] = defaultdict(set)
        self._letters: dict[Place, list[_Letter]] = defaultdict(list)
        self._opened: dict[Place, dict[Record, set[str]]] = defaultdict(dict)
        self._back: dict[Place, set[Record]] = defaultdict(set)
        self._copied: set[tuple[Place, Record]] = set()
        self.nobodys: dict[int, int] = {}

    def dead_letter(self, fact: Landed, record: Record, known_epoch: int) -> bool:
        """Does it follow a held record, and has not had its attempts?"""
        named = {name: text or b"" for name, text in fact.headers}
        place: Place = (fact.place[1], fact.key)
        behind = named.get("pl.hold", b"").startswith(b"behind/")
        epoch = int(named["pl.epoch"])
        if epoch < known_epoch or epoch <= self.nobodys.get(place[0], -1) or fact.key is None:
            self._met["a dead letter of an owner that was replaced"] += 1
        elif behind:
            self._met["followed a held record"] += 1
            self._letters[place].append(_Letter(record))
            if not any(head < record for head in self.heads[place]):
                self._wrong(
                    "I2", f"{record} of {fact.key!r} is in the dead letters behind a held record that is not there"
                )
        elif named.get("pl.error.type") == b"Skipped":
            self.done(place, record)
        else:
            self._met["key held"] += 1
            self.heads[place].add(record)
        return behind

    def done(self, place: Place, record: Record) -> None:
        """It has another ending than the one that held its key."""
        self.heads[place].discard(record)

    def copy(self, place: Place, record: Record, hold: str) -> None:
        """A record of the replay lane that is about a held key."""
        kind, _, number = hold.partition("/")
        if kind == "held":
            self._copied.add((place, record))
        elif kind == "open":
            self._opened[place].setdefault(record, set()).add(number)
        elif kind == "close":
            for opened in [each for each, numbers in self._opened[place].items() if number in numbers]:
                del self._opened[place][opened]
                self.heads[place].discard(opened)
            self._met["held key let go"] += 1

    def sent_back(self, place: Place, record: Record) -> None:
        found = [letter for letter in self._letters[place] if letter.record[0] == record[0]]
        for letter in found:
            letter.sent = True
        if record[1].startswith("s"):
            self._met["sent back to a key that was held"] += 1
            self._back[place].add(record)

    def check_begin(self, place: Place, record: Record, released: int, ended: Callable[[Record, bool], bool]) -> None:
        """`ended(record, behind)`: has it an ending; and with `behind`: another one than following a held record?"""
        key = place[1]
        for head in self.heads[place]:
            # Until its copy is in the replay lane an owner's death runs the head again, and what an operator released is not behind it.
            if head < record and (record[0] > released or (place, head) in self._copied):
                self._wrong("I3", f"{record} of {key!r} began behind {head}, which is held")
        if record[0] <= released:
            return
        for letter in self._letters[place]:
            if not letter.sent and letter.record < record and not ended(letter.record, True):
                self._wrong(
                    "I3", f"{record} of {key!r} began before {letter.record} was sent back, which follows a held record"
                )
        for before in self._back[place]:
            if before < record and not ended(before, False):
                self._wrong("I3", f"{record} of {key!r} began before {before}, which a release brought back")
