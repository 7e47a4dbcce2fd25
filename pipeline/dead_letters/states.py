"""What has become of a dead letter, told from the results of actions on it. Pure.

open -> redriven | edited | purged | cancelled | converted        (a refused or failed action leaves it as it was)
"""

from __future__ import annotations

from typing import Literal

State = Literal["open", "redriven", "edited", "purged", "cancelled", "converted"]
STATES: tuple[State, ...] = ("open", "redriven", "edited", "purged", "cancelled", "converted")
"""By the number that the index keeps."""
OPEN = 0

_OF_OUTCOME: dict[str, State] = {
    "written": "redriven",
    "edited": "edited",
    "purged": "purged",
    "cancelled": "cancelled",
    "converted": "converted",
}
_FOLLOWS: dict[State, frozenset[State]] = {
    "open": frozenset(STATES),
    "cancelled": frozenset({"redriven", "edited", "purged", "converted"}),
    "converted": frozenset({"redriven", "purged"}),
    "edited": frozenset({"redriven", "purged"}),
    "redriven": frozenset({"purged"}),
    "purged": frozenset(),
}
"""Two commands at once may both see an open letter: what was sent stays sent, whoever gives it up a moment later."""
MAX_PARTITION = 32_767
_OFFSET_BITS = 48
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


def state_after(outcome: str, before: State) -> State:
    """The state once a result with this outcome is known. Purged is for good: the record itself may be gone."""
    after = _OF_OUTCOME.get(outcome, before)
    return after if after in _FOLLOWS[before] else before


def is_position(partition: int, offset: int) -> bool:
    """Whether a position can be one: others would be numbers of other letters, or of none."""
    return 0 <= partition <= MAX_PARTITION and 0 <= offset <= _OFFSET_MASK


def number_of(state: str) -> int:
    return STATES.index(state)


def id_of(partition: int, offset: int) -> int:
    """A position as one number: partitions in order, offsets in order within them."""
    return partition << _OFFSET_BITS | offset


def position_of(number: int) -> tuple[int, int]:
    """(partition, offset)."""
    return number >> _OFFSET_BITS, number & _OFFSET_MASK
