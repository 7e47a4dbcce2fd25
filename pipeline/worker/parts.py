"""What an engine is made of from outside: the executor it feeds, and what the composition root hands in."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.cluster import RecordProducer
from pipeline.model.control import Switches
from pipeline.model.outcome import Emit
from pipeline.model.topics import LaneTopics


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


class Clock:
    """Wall time in milliseconds, injected: the virtual one on the memory cluster.

    `now_ms` is the time of the running step: what the hot path uses. `read` asks the clock, where being late would matter.
    """

    __slots__ = ("_source", "now_ms")

    def __init__(self, source: Callable[[], int]) -> None:
        self._source = source
        self.now_ms = source()

    def read(self) -> int:
        self.now_ms = self._source()
        return self.now_ms


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What the composition root hands in. `encode` turns an output into (real topic, key, value) bytes.

    It raises SchemaUnavailable before the output's contract was looked up, which `prepare` does.
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
