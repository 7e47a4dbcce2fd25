"""Admission of many records at once, and of batches in which a key has several: see `Unit.admit` and `Chains`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit


def admit_many(
    unit: Unit, ready: deque[Delivery], into: list[Delivery], full: int, now_ms: int, chained: bool = False
) -> None:
    """`Unit.admit` for those at the head of `ready` that are the unit's, until `into` has `full` or there are effects to perform.

    `chained`: `into` is a batch that is handled in its order, so a key may have several records in it.
    """
    busy, parked, by_key = unit.busy, unit.parking.keys, unit.by_key and not unit.draining
    gathered, waiting = unit.chains.gathered, unit.waiting
    while ready and len(into) < full and ready[0].unit is unit:
        delivery = ready.popleft()
        key = delivery.key
        if by_key and key is not None and not delivery.lane and key not in parked:
            if key not in busy:
                busy.add(key)
                into.append(delivery)
                if chained:
                    gathered.add(key)
            elif chained and key in gathered and key not in waiting.by_key:
                unit.chains.lengthen(key)
                into.append(delivery)
            else:
                waiting.add(delivery)
        elif unit.admit(delivery, now_ms):
            into.append(delivery)
        elif unit.effects:
            return


def gather(delivery: Delivery, into: list[Delivery], full: int) -> None:
    """An admitted delivery goes into the batch, and with it what waits for its key alone."""
    unit, key = delivery.unit, delivery.key
    into.append(delivery)
    if not unit.by_key or key is None or key in unit.parking.keys:
        return
    unit.chains.gathered.add(key)
    while len(into) < full and (following := unit.waiting.pop(key)) is not None:
        unit.chains.lengthen(key)
        into.append(following)


def gathering_ends(batch: Sequence[Delivery]) -> None:
    """The batch is on its way: what comes now waits behind it."""
    for unit in {delivery.unit for delivery in batch}:
        unit.chains.gathered.clear()


def hold_back_behind(stopped: Delivery, later: Iterable[Delivery]) -> list[Delivery]:
    """One of a key's records in a batch is not done: those after it were not run, and wait for it. Returns them."""
    unit, key = stopped.unit, stopped.key
    if key is None or not unit.chains.more:
        return []
    behind = [delivery for delivery in later if delivery.key == key and delivery.unit is unit]
    if behind:
        unit.chains.cut(key, len(behind))
        if not unit.draining:
            unit.waiting.put_first(behind)
    return behind
