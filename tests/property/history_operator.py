"""Held keys in a random history: the oracle of what may run, and an operator whose tool releases keys, step by step, and dies at times.

The tool looks at committed texts and logs only, as `pipeline dlq release` does: it knows nothing of the unit.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.core.parking import Identity
from pipeline.core.progress import Progress, decode
from pipeline.model.headers import CLOSES, HELD, OPENS, DeliveryHeaders, HeaderError, encode
from pipeline.model.headers import decode as decode_headers

if TYPE_CHECKING:
    from tests.property.history_world import World

RELEASE_HOPS = 1_000
NO_OWNERS_EPOCH = 1 << 62


Copies = dict[Identity, tuple[bytes | None, DeliveryHeaders]]


class Violation(Exception):
    """Something that must never happen did."""


@dataclass(slots=True)
class Letter:
    """A dead letter of a held key."""

    identity: Identity
    head: bool
    sent: bool = False


@dataclass(slots=True)
class Release:
    """A run of the tool for one key."""

    key: bytes | None
    number: int
    redrive: bool
    stage: int = 0
    opened: dict[Identity, str] = field(default_factory=dict)
    to_send: list[Letter] = field(default_factory=list)


class Operator:
    """`heads`: given up and not released yet, by key. `sent_back`: what releases brought back."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heads: dict[bytes | None, set[Identity]] = defaultdict(set)
        self.letters: dict[bytes | None, list[Letter]] = defaultdict(list)
        self.sent_back: dict[bytes | None, set[Identity]] = defaultdict(set)
        self.release: Release | None = None
        self.numbers = 0
        self.redrives_left = 4

    # -- the oracle

    def may_start(self, key: bytes | None, identity: Identity) -> None:
        if not self.world.plan.hold or key is None:
            return
        if any(head < identity for head in self.heads[key]):
            raise Violation("ran behind a held record")
        if identity.origin <= self.world.released.get(key, -1):
            return
        stories = self.world.stories
        for letter in self.letters[key]:
            left = not letter.head and not letter.sent and stories[letter.identity].endings <= {"behind"}
            if left and letter.identity < identity and letter.identity not in self.world.skipped:
                raise Violation("overtook a held record's letter")
        for earlier in self.sent_back[key]:
            if earlier < identity and not stories[earlier].endings and earlier not in self.world.skipped:
                raise Violation("overtook what a release brought back")

    def letter(self, key: bytes | None, identity: Identity, behind: bool, holds: bool) -> None:
        """A dead letter is written."""
        if not self.world.plan.hold or key is None:
            return
        if behind:
            if not any(head < identity for head in self.heads[key]):
                raise Violation("followed nothing")
            self.letters[key].append(Letter(identity, head=False))
        elif holds:
            self.heads[key].add(identity)
            self.letters[key].append(Letter(identity, head=True))

    def was_sent(self, identity: Identity) -> bool:
        key = self.world.stories[identity].key
        return any(letter.identity == identity and letter.sent for letter in self.letters[key])

    # -- the tool

    def _copies(self) -> Iterator[tuple[int, bytes | None, DeliveryHeaders]]:
        """Unsettled records of the replay lane, by commits alone."""
        position = self.world.committed.get("replay")
        progress = decode(*position) if position else Progress(0, 0)
        for record in self.world.logs["replay"].fetch(progress.offset, 1 << 30):
            offset = record.offset()
            if offset < progress.end and offset not in progress.open:
                continue
            try:
                yield offset, record.key(), decode_headers(record.headers())
            except HeaderError:
                continue

    def look(
        self,
    ) -> tuple[Copies, dict[bytes | None, bool], Copies]:
        """(held records, keys that have an unsettled held copy, records that are being released)."""
        position = self.world.committed.get("source")
        source = decode(*position) if position else Progress(0, 0)
        best: dict[Identity, tuple[bytes | None, DeliveryHeaders]] = {}
        unsettled: dict[bytes | None, bool] = {}
        for offset, key, found in self._copies():
            if found.hop and found.epoch < source.epoch and offset >= source.fences.get("replay", 1 << 60):
                continue
            identity = Identity(found.origin_offset, found.replay_id)
            unsettled[key] = unsettled.get(key, False) or found.hold == HELD
            if identity not in best or best[identity][1].hop < found.hop:
                best[identity] = (key, found)
        held = {identity: each for identity, each in best.items() if each[1].hold == HELD}
        opened = {identity: each for identity, each in best.items() if each[1].hold.startswith(OPENS)}
        return held, unsettled, opened

    def step(self, rng: random.Random, final: bool = False) -> bool:
        """One step of the tool. False: nothing is held, as far as it can see."""
        release = self.release
        if release is not None and not final and rng.random() < 0.05:
            self.release = release = None  # the tool dies; somebody runs it again, or not yet
        if release is None:
            held, _, opened = self.look()
            keys = sorted({key for key, _ in (*held.values(), *opened.values())}, key=lambda key: key or b"")
            if not keys:
                return False
            self.numbers += 1
            redrive = self.redrives_left > 0 and rng.random() < 0.5
            self.redrives_left -= redrive
            self.release = Release(rng.choice(keys), self.numbers, redrive)
        elif release.stage == 0:
            self._open(release)
        elif release.stage == 1:
            self._wait(release)
        else:
            self._send(release, rng)
        return True

    def _open(self, release: Release) -> None:
        held, _, _ = self.look()
        for identity, (key, found) in sorted(held.items()):
            if key == release.key:
                self._append(key, identity, found.hop + RELEASE_HOPS, f"{OPENS}{release.number}", NO_OWNERS_EPOCH)
        release.stage = 1

    def _wait(self, release: Release) -> None:
        held, unsettled, opened = self.look()
        if any(key == release.key for key, _ in held.values()):
            release.stage = 0
        elif not (mine := {i: found.hold for i, (key, found) in opened.items() if key == release.key}):
            self.release = None  # somebody else was faster
        elif not unsettled[release.key]:
            release.opened = mine
            kept = [x for x in self.letters[release.key] if not x.sent and (not x.head or release.redrive)]
            release.to_send = sorted(kept, key=lambda letter: letter.identity)
            release.stage = 2

    def _send(self, release: Release, rng: random.Random) -> None:
        world = self.world
        if release.to_send:
            letter = release.to_send.pop(0)
            identity = Identity(letter.identity.origin, f"s{release.number:04}")
            world.bring_back(identity, release.key)
            self._append(release.key, identity, 0, "", 0)
            letter.sent = True
            self.sent_back[release.key].add(identity)
            return
        for letter in self.letters[release.key]:
            letter.sent = letter.sent or letter.identity in release.opened
        self.heads[release.key] -= set(release.opened)
        for hold in sorted(set(release.opened.values())):
            number = hold.removeprefix(OPENS)
            self._append(release.key, Identity(0, f"close{number}"), 0, f"{CLOSES}{number}", 0)
        self.release = None

    def _append(self, key: bytes | None, identity: Identity, hop: int, hold: str, epoch: int) -> None:
        headers = DeliveryHeaders(
            0, hop, epoch, "t", 0, identity.origin, 0, "g", replay_id=identity.replay_id, replay_count=1, hold=hold
        )
        self.world.logs["replay"].append(key, encode([], headers), self.world.gap(), None)
