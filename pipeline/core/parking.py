"""Which keys wait behind a retry, and which copy of a record counts.

A record that failed lives on as a copy in a tier; until it is resolved, later records of its key wait behind it.
`design.md` names the rules (a), (c) and (d); their executable model is the history test in tests/property.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple


class Identity(NamedTuple):
    """A record for its whole life: where it was first published, and the replay that brought it back ("" = none).

    Sorts by origin offset: the order that a key's records must have.
    """

    origin: int
    replay_id: str = ""


class Holder(NamedTuple):
    """The copy that counts: how many hand-offs it has seen and the index of the lane it is in."""

    hop: int
    lane: int


class Parking:
    """Unresolved records that have been handed off, by key. `keys` is read by the hot path: a key not in it is not parked."""

    __slots__ = ("_aside", "_holders", "keys")

    def __init__(self) -> None:
        self.keys: dict[bytes | None, list[Identity]] = {}
        self._holders: dict[Identity, Holder] = {}
        self._aside: dict[bytes | None, set[Identity]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def origins(self) -> Iterator[int]:
        """Offsets of source records that live on in a lane (replayed ones are records of their own)."""
        return (identity.origin for identity in self._holders if not identity.replay_id)

    def observe(self, key: bytes | None, identity: Identity, hop: int, lane: int) -> None:
        """A copy found while rebuilding: of several, the one with the most hops counts (c)."""
        best = self._holders.get(identity)
        if best is None:
            insort(self.keys.setdefault(key, []), identity)
        if best is None or hop > best.hop:
            self._holders[identity] = Holder(hop, lane)

    def hand_off(self, key: bytes | None, identity: Identity, hop: int, lane: int) -> None:
        """A copy is on its way to a lane: from now on it is the one that counts."""
        if identity not in self._holders:
            insort(self.keys.setdefault(key, []), identity)
        self._holders[identity] = Holder(hop, lane)

    def resolve(self, key: bytes | None, identity: Identity) -> None:
        """The record has its ending; resolving one that was never handed off does nothing."""
        if self._holders.pop(identity, None) is None:
            return
        waiting, aside = self.keys[key], self._aside.get(key)
        if aside and identity in aside:
            aside.discard(identity)
            if not aside:
                del self._aside[key]
        else:
            del waiting[bisect_left(waiting, identity)]
        if not waiting and key not in self._aside:
            del self.keys[key]

    def step_aside(self, key: bytes | None, identity: Identity) -> None:
        """Nobody waits for this record any more, though its copy still counts when it comes up: its key stays parked."""
        if identity not in self._holders:
            return
        aside = self._aside.setdefault(key, set())
        if identity not in aside:
            aside.add(identity)
            waiting = self.keys[key]
            del waiting[bisect_left(waiting, identity)]

    def holder(self, identity: Identity) -> Holder | None:
        return self._holders.get(identity)

    def counts(self, identity: Identity, hop: int, lane: int) -> bool:
        """Is this fetched copy the one that counts (c)?"""
        return self._holders.get(identity) == (hop, lane)

    def tail_before(self, key: bytes | None, identity: Identity) -> Identity | None:
        """The highest unresolved record of the key below this one (a), or None: nothing to wait for."""
        waiting = self.keys.get(key)
        if not waiting:
            return None
        below = bisect_left(waiting, identity)
        return waiting[below - 1] if below else None

    def held_in(self, lane: int) -> Iterator[tuple[bytes | None, Identity, Holder]]:
        """Unresolved records whose copy that counts is in that lane, with their keys. Looks at all of them."""
        for keys in (self.keys, self._aside):
            for key, identities in keys.items():
                for identity in identities:
                    holder = self._holders[identity]
                    if holder.lane == lane:
                        yield key, identity, holder

    def head(self, key: bytes | None) -> Identity | None:
        """The lowest unresolved record of the key."""
        waiting = self.keys.get(key)
        return waiting[0] if waiting else None
