"""Records whose schema is not known yet: the registry is asked for as long as it takes, nothing is dead-lettered."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.worker.concluding import Background, registry_pause_s


class SchemaWaits:
    """`fetch` looks an id up and may block, in a thread; `ready` gets the deliveries that waited for it."""

    def __init__(
        self, fetch: Callable[[int], None], ready: Callable[[list[Delivery]], None], background: Background, log: Any
    ) -> None:
        self._fetch = fetch
        self._ready = ready
        self._background = background
        self._log = log
        self._waits: dict[int, list[Delivery]] = {}

    def __len__(self) -> int:
        """Deliveries that wait."""
        return sum(map(len, self._waits.values()))

    def add(self, delivery: Delivery, schema_id: int) -> None:
        """The delivery waits, with its key; the first one for an id asks the registry."""
        waiting = self._waits.get(schema_id)
        if waiting is not None:
            waiting.append(delivery)
            return
        self._waits[schema_id] = [delivery]
        self._background.start(self._ask(schema_id))

    async def _ask(self, schema_id: int) -> None:
        loop = asyncio.get_running_loop()
        for tries in itertools.count():
            try:
                await loop.run_in_executor(None, self._fetch, schema_id)
                break
            except Exception as error:
                self._log.warning("schema registry does not answer: waiting", schema_id=schema_id, error=str(error))
                await asyncio.sleep(registry_pause_s(tries))
        self._ready(self._waits.pop(schema_id))

    def withdraw(self, unit: Unit) -> list[Delivery]:
        """What of this unit waits, and waits no more: attempts that failed in memory are to be handed back."""
        waiting = [delivery for waiting in self._waits.values() for delivery in waiting if delivery.unit is unit]
        self.forget(unit)
        return waiting

    def forget(self, unit: Unit) -> None:
        """The unit is let go: its records would count as waiting, and be kept, until the registry answers."""
        for schema_id, waiting in self._waits.items():
            self._waits[schema_id] = [delivery for delivery in waiting if delivery.unit is not unit]
