"""A copy that its lane does not take, whatever is done: the record is given up, so that its partition goes on.

A source record may have come in a small compressed batch, and a copy of it goes alone. Tried for ever, it would hold back everything
behind it; in the dead letters it is seen, and a redrive finds its bytes where they are.
"""

from __future__ import annotations

from pipeline.core.copies import copy_headers
from pipeline.core.effects import DeadLetter, HandOff
from pipeline.model.outcome import Failure, FailureKind

ERROR_CLASS = "RecordTooLarge"


def may_be_given_up(effect: HandOff) -> bool:
    """Not a copy that says its key is held; and where a key is to be held behind it, nothing of the key may run meanwhile."""
    unit, key = effect.delivery.unit, effect.delivery.key
    return not effect.headers.hold and not (unit.policy.hold and key in unit.busy)


def give_up(effect: HandOff, why: str, now_ms: int) -> None:
    """Its dead letter is among the unit's effects; its successors wait until that is written."""
    delivery, unit = effect.delivery, effect.delivery.unit
    unit.sending.pop((delivery.identity, delivery.hop + 1), None)
    text = f"{unit.lanes[effect.lane].spec.topic} does not take a copy of it: {why}; then redrive it"
    failure = Failure(FailureKind.TERMINAL, ERROR_CLASS, ERROR_CLASS, text, scrubbed=True)
    if unit.policy.hold and unit.waits and delivery.key is not None:
        _takes_back(effect)
        unit.busy.add(delivery.key)
        unit.holds.giving_up[delivery] = failure
    else:
        unit.holds.passes(delivery)
    unit.effects.append(DeadLetter(delivery, copy_headers(delivery, now_ms, failure), failure))


def _takes_back(effect: HandOff) -> None:
    """The copy that counts is the one before it again: the one that says that the key is held is to be the next."""
    delivery, parking = effect.delivery, effect.delivery.unit.parking
    if delivery.hop:
        parking.hand_off(delivery.key, delivery.identity, delivery.hop, delivery.lane)
    else:
        parking.resolve(delivery.key, delivery.identity)
