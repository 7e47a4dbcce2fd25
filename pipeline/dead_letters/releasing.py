"""Letting held keys go: with a redrive the held record and its successors go back in order; a release drops the held record.

Whatever happens, the keys are either held as before, or being released: then the same command goes on where it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.dead_letters import marking
from pipeline.dead_letters.acting import Actor, begin
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.holds import Hold, find_holds, open_holds
from pipeline.dead_letters.query import Wanted
from pipeline.dead_letters.redrive_plan import Origin, RedrivePolicy, origins
from pipeline.dead_letters.states import position_of
from pipeline.dead_letters.versions import OTHER_VERSION, one_version_each
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import HELD_CLASS
from pipeline.model.keys import key_text

LEFT_BEHIND = "held behind another dead letter: redrive that one, or `pipeline dlq release` its key"
CAPPED = "of held keys that have one which was replayed too often, so that they would go on without it (raise --replays-max, or purge it)"
Place = tuple[int, str | None]


@dataclass(frozen=True, slots=True)
class Following:
    """Dead letters with what is held: `letters` go together, `holds` are those of their keys. `left_out`: how many do not go, and why."""

    letters: list[Origin]
    holds: list[Hold] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def place_of(letter: Origin) -> Place:
    """Partition and key. A dead letter lies in the partition of its origin."""
    return position_of(letter.number)[0], letter.key


def followers(desk: Desk, group: str, places: set[Place]) -> list[Origin]:
    """Open dead letters that follow the held ones of these keys."""
    numbers = desk.matching(Wanted(states=("open",), group=group, error_classes=(HELD_CLASS,)))
    return [letter for letter in origins(desk, numbers) if place_of(letter) in places]


def with_followers(desk: Desk, group: str, letters: Sequence[Origin]) -> Following:
    """What a redrive of these is about: one version of each record; a held one goes with its successors, a successor not without it."""
    own = {letter.number: letter for letter in one_version_each(desk, group, letters)}
    left_out = Counter({OTHER_VERSION: len(letters) - len(own)})
    holds = find_holds(desk, group)
    if not holds:
        return Following(list(own.values()), left_out=+left_out)
    heads, held = {(hold.place, hold.origin) for hold in holds}, {hold.place for hold in holds}
    chosen = {place_of(letter) for letter in own.values() if (place_of(letter), letter.origin_offset) in heads}
    # A release that was begun goes on: its head may have been sent by then, and is not among these letters any more.
    chosen |= {hold.place for hold in holds if hold.release} & {place_of(letter) for letter in own.values()}
    following = {letter.number for letter in followers(desk, group, held)}
    left = [number for number, letter in own.items() if number in following and place_of(letter) not in chosen]
    for number in left:
        del own[number]
    left_out[LEFT_BEHIND] = len(left)
    own |= {letter.number: letter for letter in followers(desk, group, chosen)}
    going = one_version_each(desk, group, [own[number] for number in sorted(own)])
    mine = [hold for hold in holds if hold.place in {place_of(letter) for letter in going} and hold.place in chosen]
    return Following(going, mine, +left_out)


def without_capped(together: Following, policy: RedrivePolicy) -> Following:
    """Without held keys that have a letter which was replayed too often: it stays where it is, and what follows it behind it."""
    held = {hold.place for hold in together.holds}
    capped = {place_of(letter) for letter in together.letters if letter.replay_count >= policy.replays_max} & held
    going = [letter for letter in together.letters if place_of(letter) not in capped]
    left_out = together.left_out + Counter({CAPPED: len(together.letters) - len(going)})
    return Following(going, [hold for hold in together.holds if hold.place not in capped], left_out)


def opened(
    desk: Desk, group: str, letters: Sequence[Origin], holds: Sequence[Hold], actor: Actor, now_ms: int, policy: RedrivePolicy,
    alive: Callable[[], bool] = lambda: True, every: bool = False,
) -> Following:  # fmt: skip
    """Start releasing the keys of these letters (`every`: all that are held), and look once more which letters follow.

    On record before anything is done. Raises `ConfigurationError` where one of them may not be sent: the key would go on without it.
    """
    places = {place_of(letter) for letter in letters}
    mine = [hold for hold in holds if every or hold.place in places]
    if not mine:
        return Following(list(letters))
    _refuse_capped([letter for letter in letters if place_of(letter) in {hold.place for hold in mine}], policy)
    keys = sorted({str(key_text(hold.key)) for hold in mine})
    action_id = begin(desk, actor, "release", [letter.number for letter in letters], now_ms, keys=keys[:100])
    current = open_holds(desk, group, mine, action_id, alive)
    desk.refresh()
    found = {letter.number: letter for letter in (*letters, *followers(desk, group, {hold.place for hold in mine}))}
    states = desk.states(list(found))  # that took a while: what somebody gave up meanwhile is not sent
    kept = [found[number] for number in sorted(found) if states.get(number) == found[number].state]
    kept = one_version_each(desk, group, kept)
    if not kept and not every:
        raise ConfigurationError(
            "something was done meanwhile about all of these dead letters, so nothing was sent: `pipeline dlq release` lets their keys go"
        )
    return Following(kept, current)


def _refuse_capped(letters: Sequence[Origin], policy: RedrivePolicy) -> None:
    capped = sum(letter.replay_count >= policy.replays_max for letter in letters)
    if capped:
        raise ConfigurationError(
            f"{capped} dead letters of held keys were replayed {policy.replays_max} times already, and their keys would go on without "
            "them: raise --replays-max, or purge them"
        )


def holds_of(desk: Desk, group: str, keys: Sequence[str]) -> list[Hold]:
    """The held records of these keys; of all that are held when none is given."""
    return [hold for hold in find_holds(desk, group) if not keys or key_text(hold.key) in keys]


def drop_heads(desk: Desk, group: str, holds: Sequence[Hold], actor: Actor, now_ms: int) -> int:
    """The dead letters of held records that are let go without running are cancelled: nobody waits for them any more."""
    wanted = {(hold.place, hold.origin) for hold in holds}
    keys = tuple(sorted({str(key_text(hold.key)) for hold in holds}))
    found: list[int] = []
    for at in range(0, len(keys), 500):
        numbers = desk.matching(Wanted(states=("open",), group=group, keys=keys[at : at + 500]))
        found += [x.number for x in origins(desk, numbers) if (place_of(x), x.origin_offset) in wanted]
    behind = {letter.number for letter in followers(desk, group, {hold.place for hold in holds})}
    heads = [number for number in found if number not in behind]
    if heads:
        marking.cancel(desk, heads, actor, now_ms)
    return len(heads)
