"""What `delivery="exactly_once"` promises beyond the rest (I5): readers of committed records see the effect of each record once.

Only what a committed transaction holds has happened. A record counts as over, for its key's order, when it had its last execution in
this life of its partition, or when its position says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from tests.simulation.facts import Began, Landed, Place, Seen

Identity = tuple[int, int, str]


class ExactlyOnce:
    """Of one history: its open transactions, and what readers may see of outputs and dead letters. `wrong`: told of what is not so."""

    def __init__(self, wrong: Callable[[str, str], None], seen: Counter[str]) -> None:
        self._wrong = wrong
        self._met = seen
        self._open: dict[int, list[Landed]] = defaultdict(list)
        self._visible: dict[Place, None] = {}
        self._read: set[Place] = set()
        self._effects: Counter[tuple[Identity, int]] = Counter()
        self._execution: dict[Identity, int] = {}
        self._dead: Counter[Identity] = Counter()
        self._over: dict[tuple[int, int], set[Identity]] = defaultdict(set)

    # -- transactions

    def landed(self, fact: Landed) -> None:
        self._open[fact.transaction].append(fact)

    def decided(self, transaction: int, committed: bool) -> list[Landed]:
        """What is there from now on."""
        found = self._open.pop(transaction, [])
        self._met["transaction committed" if committed else "transaction aborted"] += 1
        self._met["aborted with records in it"] += bool(found) and not committed
        return found if committed else []

    # -- endings

    def over(self, life: tuple[int, int], identity: Identity) -> None:
        self._over[life].add(identity)

    def is_over(self, life: tuple[int, int], identity: Identity) -> bool:
        return identity in self._over[life]

    # -- effects

    def output(self, fact: Landed, index: int, began: Began) -> None:
        if not fact.transaction:
            self._wrong("I5", f"an output is outside of any transaction, at {fact.place}")
        self._visible[fact.place] = None
        identity = (began.place[1], began.origin, began.replay_id)
        self._effects[identity, index] += 1
        if self._effects[identity, index] > 1:
            self._wrong("I5", f"output {index} of {identity} is there {self._effects[identity, index]} times")
        if self._execution.setdefault(identity, began.number) != began.number:
            self._wrong("I5", f"the outputs of {identity} come from two executions")

    def dead_letter(self, fact: Landed, identity: Identity) -> None:
        self._dead[identity] += 1
        if self._dead[identity] > 1:
            self._wrong("I5", f"{identity} has {self._dead[identity]} dead letters")
        if identity in self._execution:
            self._wrong("I5", f"{identity} has outputs, and a dead letter at {fact.place}")

    def read(self, fact: Seen) -> None:
        """A reader that looks on meanwhile."""
        self._met["output read while work went on"] += 1
        if fact.place not in self._visible:
            self._wrong("I5", f"a reader saw {fact.place}, which no committed transaction holds")
        if fact.place in self._read:
            self._wrong("I5", f"a reader saw {fact.place} twice")
        self._read.add(fact.place)

    def check_end(self) -> None:
        unread = [place for place in self._visible if place not in self._read]
        if unread and self._read:
            self._wrong("I5", f"{len(unread)} outputs were never read, the first at {unread[0]}")
