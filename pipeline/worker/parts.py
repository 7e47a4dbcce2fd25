"""What an engine is made of from outside: the executor it feeds, and what the composition root hands in."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.delivery import Delivery
from pipeline.core.effects import DeadLetter
from pipeline.core.store_scan import StoreScan
from pipeline.core.unit import Unit
from pipeline.model.cluster import RecordProducer
from pipeline.model.control import Switches
from pipeline.model.outcome import Emit
from pipeline.model.topics import LaneTopics
from pipeline.model.transactions import TransactionalProducer

if TYPE_CHECKING:
    from pipeline.worker.diagnosing import Diagnosis


class Executor(Protocol):
    """Runs deliveries that `Engine.take` gives, and answers through `Engine.done`, `complete` or `abandoned`."""

    def pump(self) -> None:
        """There may be work: start as much as the bound allows."""

    def holds(self, unit: Unit) -> bool:
        """Does anything of this unit run now?"""
        ...

    def cancel(self, unit: Unit) -> None:
        """Stop what runs for this unit, as far as it can be stopped."""

    def running(self) -> int: ...

    def abandon(self) -> None:
        """Stop at once, as a dying process does."""

    async def stop(self) -> None: ...


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Clock:
    """Wall time in milliseconds, injected: the virtual one on the memory cluster.

    `now_ms` is the time of the running step: what the hot path uses. `read` asks the clock, where being late would matter.
    It is the cluster's time where the machine's is known to differ (`ahead_ms`): not later than that, and at most `spread_ms` earlier.
    """

    __slots__ = ("_source", "ahead_ms", "now_ms", "spread_ms")

    def __init__(self, source: Callable[[], int]) -> None:
        self._source = source
        self.ahead_ms = self.spread_ms = 0
        self.now_ms = source()

    def read(self) -> int:
        self.now_ms = self._source() + self.ahead_ms
        return self.now_ms


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What the composition root hands in. `encode` turns an output into (real topic, key, value) bytes.

    It raises SchemaUnavailable before the output's contract was looked up, which `prepare` does. `diagnosis` completes failures;
    `alert` hears of dead letters (effect, offset) that are acknowledged. `transactional` is set for delivery "exactly_once".
    `restored` is given the store of a unit that is ours from now on.
    """

    topics: LaneTopics
    group: str
    producer: RecordProducer
    encode: Callable[[Emit], tuple[str, bytes | None, bytes | None]]
    schema_of: Callable[[Delivery], str]
    clock: Clock
    rng: random.Random
    log: Any
    prepare: Callable[[Emit], Awaitable[None]]
    fetch_schema: Callable[[int], None] = lambda _id: None
    switches: Switches = field(default_factory=Switches)
    broken: Callable[[BaseException], None] = lambda _error: None
    diagnosis: Diagnosis | None = None
    alert: Callable[[DeadLetter, int], None] = lambda _effect, _offset: None
    transactional: TransactionalProducer | None = None
    restored: Callable[[Unit, StoreScan], None] = lambda _unit, _scan: None
