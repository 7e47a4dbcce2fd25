"""Which records of a unit may have ended its last owners: crash loops are found out and broken with nothing but the commit's text.

A claim writes how many owners in a row, this one included, did not let go in order (`unclean`); a clean release writes 0, or, while
suspects have no ending yet, what the claim found.
1: owned, nothing is wrong. 2: the last owner died. Then the unit is watched: only what lies below the *horizon* is let through,
and the horizon goes on only when a commit that names it is stored. So whoever comes next knows which records can have been running:
those open below it. 3 and more: those are the suspects, and they run alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.core.delivery import SOURCE, Delivery

if TYPE_CHECKING:
    from pipeline.core.unit import Unit

UNCLEAN, SOURCE_NAME = "unclean", "source"
HEALTHY, WATCHED, SUSPECTED = 1, 2, 3
WINDOW, WINDOW_MAX = 64, 1_024
"""How far past what was let through the horizon lies: it doubles while records wait for it."""
HELD_MAX = 4 * WINDOW_MAX
STEADY_MS = 60_000


def unclean_in_a_row(marks: Mapping[str, int]) -> int:
    """How many owners in a row, the last one included, did not let go in order."""
    return marks.get(UNCLEAN, 0)


def of_records(marks: Mapping[str, int], ends: Mapping[str, int]) -> dict[str, int]:
    """The marks with horizons no further than the logs reach: what is written later can't have been running. `ends` by lane name."""
    return {name: min(number, ends.get(name, number)) for name, number in marks.items()}


def take_care(unit: Unit, before: Mapping[str, int], now_ms: int, ours: bool = False) -> None:
    """A claim: one owner more that has not let go in order yet. `before`: the marks that it found; `ours`: they are this
    process's own, so nobody died."""
    unit.unclean = max(HEALTHY, unclean_in_a_row(before) + (0 if ours else 1))
    if unit.unclean >= WATCHED and not unit.policy.isolated:
        names = [lane.spec.name for lane in unit.lanes]
        unit.care = Care(unit.unclean, names, [lane.tracker.position for lane in unit.lanes], before, now_ms)


def runs_alone(delivery: Delivery) -> bool:
    """A suspect, also one that was admitted before."""
    care = delivery.unit.care
    return care is not None and care.is_suspect(delivery)


def let_go(unit: Unit) -> None:
    """A release in order. The next owner starts anew, unless suspects have no ending yet: then it takes over where this one began, or
    a killer would be anybody's again with each worker that joins."""
    care = unit.care
    if care is not None and not care.cleared([lane.tracker.position for lane in unit.lanes]):
        care.hand_over()
    else:
        unit.care, unit.unclean = None, 0


def marks_of(unit: Unit) -> Mapping[str, int]:
    """What the source's commits say of how its owners ended."""
    return {UNCLEAN: unit.unclean} if unit.care is None else unit.care.marks()


def marking_of(unit: Unit) -> int:
    """Another number for other marks."""
    return -1 - unit.unclean if unit.care is None else unit.care.version


class Care:
    """Between what a watched unit receives and what it admits. `suspects`: to be run alone, in order.

    `names` are the unit's lanes by index, the source first; `positions` where each begins; `before` the last owner's marks.
    """

    def __init__(
        self, unclean: int, names: Sequence[str], positions: Sequence[int], before: Mapping[str, int], now_ms: int
    ) -> None:
        self.unclean = unclean
        self.inbox: deque[Delivery] = deque()
        self.suspects: deque[Delivery] = deque()
        self.version = 0
        self._names = tuple(names)
        suspected = unclean >= SUSPECTED
        self._suspect_below = [before.get(name, 0) if suspected else 0 for name in names]
        self._let_through = [
            max(position, below) for position, below in zip(positions, self._suspect_below, strict=True)
        ]
        self._windows = [WINDOW] * len(self._names)
        self._asked = [at + WINDOW for at in self._let_through]
        self._horizon = list(self._let_through)
        self._held: list[deque[Delivery]] = [deque() for _ in self._names]
        self._keys: Counter[bytes | None] = Counter()
        self._since_ms = now_ms
        self._asked_for: dict[int, list[int]] = {0: list(self._asked)}
        self._handed_over = False

    # -- the horizon

    def marks(self) -> dict[str, int]:
        """What the next commit of the source carries."""
        return {UNCLEAN: self.unclean, **dict(zip(self._names, self._asked, strict=True))}

    def ask(self) -> int:
        """Before a commit: move the horizon that it will name. Returns the version, which `stored` answers."""
        if self._handed_over:
            return self.version
        wanted = []
        for index, window in enumerate(self._windows):
            if self._waits_for_horizon(index):
                window = self._windows[index] = min(WINDOW_MAX, 2 * window)
            wanted.append(max(self._asked[index], self._let_through[index] + window))
        if wanted != self._asked:
            self._asked = wanted
            self.version += 1
            self._asked_for[self.version] = list(wanted)
        return self.version

    def stored(self, version: int) -> None:
        """A commit with this version's marks is durable."""
        asked = self._asked_for.get(version)
        if asked is not None:
            self._horizon = [max(old, new) for old, new in zip(self._horizon, asked, strict=True)]
            self._asked_for = {known: marks for known, marks in self._asked_for.items() if known > version}

    @property
    def moving(self) -> bool:
        """A commit would let something through, or say more of what is running."""
        near = any(
            through + WINDOW // 2 >= horizon for through, horizon in zip(self._let_through, self._horizon, strict=True)
        )
        return near or any(map(self._waits_for_horizon, range(len(self._held))))

    def _waits_for_horizon(self, index: int) -> bool:
        held = self._held[index]
        return bool(held) and held[0].offset >= self._horizon[index]

    # -- records

    def is_suspect(self, delivery: Delivery) -> bool:
        return delivery.offset < self._suspect_below[delivery.lane]

    def sort(self, ready: deque[Delivery], at_once: int, opened: int) -> None:
        """What has come since: to `suspects`, to `ready`, or held back until the horizon or a suspect of its key lets it go.

        `at_once`: how many can run; `opened`: how many records of the source were received and have no ending. More than can run is
        not let through: a death would make suspects of what only stood in line, and each runs alone then. (Lanes' records may wait
        for each other's keys, so they are not counted.)
        """
        inbox = self.inbox
        while inbox:
            delivery = inbox.popleft()
            if self.is_suspect(delivery):
                self.suspects.append(delivery)
                self._keys[delivery.key] += 1
            else:
                self._held[delivery.lane].append(delivery)
        waiting = len(self._held[SOURCE]) + sum(suspect.lane == SOURCE for suspect in self.suspects)
        for index, held in enumerate(self._held):
            if held:
                self._let_go(
                    index, held, ready, at_once + WINDOW - (opened - waiting) if index == SOURCE else len(held)
                )

    def _let_go(self, index: int, held: deque[Delivery], ready: deque[Delivery], room: int) -> None:
        horizon, keys = self._horizon[index], self._keys
        back: list[Delivery] = []
        while room > 0 and held and held[0].offset < horizon:
            delivery = held.popleft()
            if keys and delivery.key is not None and delivery.key in keys:
                back.append(delivery)  # behind the suspects of its key
                continue
            room -= 1
            self._let_through[index] = max(self._let_through[index], delivery.offset + 1)
            ready.append(delivery)
        held.extendleft(reversed(back))

    def next_suspect(self, may_run: Callable[[Delivery], bool]) -> Delivery | None:
        """The first one whose key is free; it is out of here."""
        for delivery in self.suspects:
            if may_run(delivery):
                self.suspects.remove(delivery)
                self._keys[delivery.key] -= 1
                if not self._keys[delivery.key]:
                    del self._keys[delivery.key]
                return delivery
        return None

    @property
    def full(self) -> bool:
        """So much is held back that no more should be fetched."""
        return sum(map(len, self._held)) + len(self.suspects) >= HELD_MAX

    def over(self, now_ms: int, positions: Sequence[int], running: bool) -> bool:
        """Nothing is suspected any more: the suspects have their endings, or a watched owner has worked steadily for a minute."""
        if self.suspects or self.inbox or running:
            return False
        if self.unclean >= SUSPECTED and self.cleared(positions):
            return True
        return now_ms - self._since_ms >= STEADY_MS

    def cleared(self, positions: Sequence[int]) -> bool:
        """Has every suspect its ending? `positions`: the first open offset of each lane."""
        return all(position >= below for position, below in zip(positions, self._suspect_below, strict=True))

    def hand_over(self) -> None:
        """What the last commit says of the suspects is what this owner was told of them."""
        self.unclean, self._asked, self._handed_over = self.unclean - 1, list(self._suspect_below), True
        self.version += 1

    def leave(self, ready: deque[Delivery]) -> None:
        """All that is held back goes on."""
        for held in self._held:
            ready.extend(held)
            held.clear()

    def clear(self) -> None:
        self.inbox.clear()
        self.suspects.clear()
        self._keys.clear()
        for held in self._held:
            held.clear()
