"""A redrive from beginning to end: what may be sent, the canary first, then the rest. Safe to end at any point, and to take up again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.dead_letters.acting import Actor, only, refuse_another_topic
from pipeline.dead_letters.canary import Outcomes, members, wait_for_outcome, written
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.holds import Hold, close_holds
from pipeline.dead_letters.redrive_plan import (
    REDRIVABLE,
    Origin,
    RedrivePolicy,
    choose_canary,
    group_of,
    origins,
    plan_for,
    pointers,
    strangers,
)
from pipeline.dead_letters.releasing import (
    Following,
    drop_heads,
    followers,
    holds_of,
    opened,
    place_of,
    with_followers,
    without_capped,
)
from pipeline.dead_letters.turn import turn
from pipeline.dead_letters.unfinished import Unfinished, forget_done, unfinished
from pipeline.dead_letters.versions import OTHER_VERSION, one_version_each
from pipeline.model.errors import ConfigurationError
from pipeline.replay.executing import Executor
from pipeline.replay.options import Tally
from pipeline.replay.plan import ReplayPlan, to_text
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan

CANARY_DEADLINE_S = 120.0
End = Literal["finished", "stopped", "cancelled", "canary failed", "canary not known", "nothing to do"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Hears how a redrive is going. `started` gets the executor of each plan, so that it can be stopped; `alive`: False ends it."""

    tally: Callable[[Tally], None] = lambda _tally: None
    canary: Callable[[Outcomes], None] = lambda _outcomes: None
    started: Callable[[Executor], None] = lambda _executor: None
    alive: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Redriven:
    """How it ended. `plans`: ids in order (canary first); `left`: letters that were not sent; `plan_file`: to take the last plan up."""

    end: End
    counts: dict[str, int]
    plans: tuple[str, ...] = ()
    left: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    canary: Outcomes | None = None
    plan_file: str | None = None
    held: tuple[str, ...] = ()
    """Keys whose release has begun and is not finished."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a redrive is going to do: shown and confirmed before anything is sent."""

    letters: tuple[Origin, ...]
    canary: tuple[Origin, ...]
    left_out: dict[str, int]
    group: str
    workers: int
    plan: ReplayPlan | None
    holds: tuple[Hold, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    """Earlier redrives that ended in the middle: to take one up repeats less than to begin anew."""


def prepare(
    desk: Desk, numbers: Sequence[int], who: str, now_ms: int, policy: RedrivePolicy, canary: int = 0
) -> Prepared:
    """Look, and check that the lane is there. Nothing is written. Raises `ConfigurationError`."""
    allowed = (*REDRIVABLE, "redriven") if policy.again else REDRIVABLE
    chosen, left = only(desk, numbers, allowed)
    unknown = strangers(desk, chosen)
    if unknown:
        left["not written by a worker, so nobody's to send back (`pipeline replay plan --to-topic` can)"] = len(unknown)
    empty = pointers(desk, chosen) - unknown
    if empty:
        left["without a value, as they only point at offsets that no client can read"] = len(empty)
    letters = origins(desk, [number for number in chosen if number not in unknown | empty])
    if not letters:
        return Prepared((), (), left, "", 0, None)
    group = group_of(letters)
    together = without_capped(with_followers(desk, group, letters), policy)
    letters, holds = together.letters, tuple(together.holds)
    left |= together.left_out
    if not letters:
        return Prepared((), (), left, "", 0, None)
    able = [letter for letter in letters if letter.replay_count < policy.replays_max]  # the others stay where they are
    first = choose_canary(able, canary) if canary else []
    first = _whole(letters, first, holds)
    if len(first) >= len(able):
        first = []  # they are so few that all go at once
    plan = plan_for(desk, letters, who, now_ms, policy)
    return Prepared(tuple(letters), tuple(first), left, group, members(desk, group), plan, holds, unfinished(desk))


def _whole(letters: Sequence[Origin], first: Sequence[Origin], holds: Sequence[Hold]) -> list[Origin]:
    """A canary in which each held key goes as a whole."""
    whole, numbers = {place_of(letter) for letter in first} & {hold.place for hold in holds}, {x.number for x in first}
    return [letter for letter in letters if letter.number in numbers or place_of(letter) in whole]


def run(
    desk: Desk, prepared: Prepared, actor: Actor, now_ms: int, policy: RedrivePolicy,
    deadline_s: float = CANARY_DEADLINE_S, progress: Progress | None = None,
) -> Redriven:  # fmt: skip
    """Send them. Each plan is audited before its first record. Raises `ConfigurationError` when a canary can have no outcome."""
    actor.check()
    told = progress or Progress()
    with turn(desk, told.alive) as alive:  # two of them would send the same letters
        return _run(desk, prepared, actor, now_ms, policy, deadline_s, replace(told, alive=alive))


def _run(
    desk: Desk, prepared: Prepared, actor: Actor, now_ms: int, policy: RedrivePolicy, deadline_s: float, told: Progress
) -> Redriven:
    prepared = _still(desk, prepared)
    if not prepared.letters:
        return Redriven("nothing to do", {}, left_out=prepared.left_out)
    if prepared.canary and not prepared.workers:
        raise ConfigurationError(
            f"group {prepared.group} has no workers, so a canary would never be done: start one, or redrive with --canary 0"
        )
    rest = list(prepared.letters)
    counts: Counter[str] = Counter()
    plans: list[str] = []
    found: Outcomes | None = None
    if prepared.canary:
        sending = _Sending(desk, prepared, actor, now_ms, policy, told)
        plan, tally, file, first = sending.send(prepared.canary)
        plans.append(plan.plan_id)
        counts += Counter(tally.counts)
        sent = {letter.number for letter in first}
        rest = [letter for letter in rest if letter.number not in sent]
        if tally.state == "finished":
            found = wait_for_outcome(desk, plan, first, deadline_s, told.canary, told.alive)
        end = _verdict(tally, found) if told.alive() else "stopped"
        if end is not None:
            left = len(rest) + len(first) - sum(tally.counts.values())
            return Redriven(end, dict(counts), tuple(plans), left, prepared.left_out, found, file, sending.held)
        prepared = _still(desk, replace(prepared, letters=tuple(rest), canary=()))
        rest = list(prepared.letters)
        if not rest:  # others did something about all of them while the canary was waited for
            return Redriven("finished", dict(counts), tuple(plans), 0, prepared.left_out, found)
    sending = _Sending(desk, prepared, actor, now_ms, policy, told)
    plan, tally, file, sent_now = sending.send(rest)
    desk.refresh()
    counts += Counter(tally.counts)
    left = len(sent_now) - sum(tally.counts.values())
    end = tally.state if tally.state in ("finished", "cancelled") else "stopped"
    forget_done(desk)
    return Redriven(end, dict(counts), (*plans, plan.plan_id), left, prepared.left_out, found, file, sending.held)


class _Sending:
    """Sends letters by one plan; those of held keys between the beginning and the end of their release. `held`: not at its end."""

    def __init__(
        self, desk: Desk, prepared: Prepared, actor: Actor, now_ms: int, policy: RedrivePolicy, told: Progress
    ) -> None:
        self._with = (desk, prepared, actor, now_ms, policy, told)
        self.held: tuple[str, ...] = ()

    def send(self, letters: Sequence[Origin]) -> tuple[ReplayPlan, Tally, str | None, list[Origin]]:
        desk, prepared, actor, now_ms, policy, told = self._with
        together = opened(desk, prepared.group, letters, prepared.holds, actor, now_ms, policy, told.alive)
        plan = plan_for(desk, together.letters, actor.who, now_ms, policy)
        tally, file = _send(desk, plan, actor, told, keep=not together.holds)
        through = _through(desk, plan, together) if tally.state == "finished" else []
        close_holds(desk, through)
        self.held = _keys_of([hold for hold in together.holds if hold not in through])
        return plan, tally, file, together.letters


def _through(desk: Desk, plan: ReplayPlan, together: Following) -> list[Hold]:
    """Those whose letters were all written: a key is not let go past one that its lane refused."""
    if not together.holds:
        return []
    desk.refresh()
    places = {hold.place for hold in together.holds}
    letters = [letter for letter in together.letters if place_of(letter) in places]
    sent, _ = written(desk, plan.plan_id, letters)
    left = {place_of(letter) for letter in letters if letter.number not in sent}
    return [hold for hold in together.holds if hold.place not in left]


def _keys_of(holds: Sequence[Hold]) -> tuple[str, ...]:
    return tuple(sorted({str(hold.place[1]) for hold in holds}))


def release(
    desk: Desk, group: str, keys: Sequence[str], actor: Actor, now_ms: int, policy: RedrivePolicy,
    progress: Progress | None = None,
) -> Redriven:  # fmt: skip
    """Let held keys go without their held records: those are cancelled, what followed them goes back in order. No keys: all of them.

    Also finishes releases that were begun and not ended.
    """
    actor.check()
    told = progress or Progress()
    with turn(desk, told.alive) as alive:
        told = replace(told, alive=alive)
        refuse_another_topic(desk)
        holds = holds_of(desk, group, keys)
        if not holds:
            return Redriven("nothing to do", {})
        letters = followers(desk, group, {hold.place for hold in holds})
        together = opened(desk, group, letters, holds, actor, now_ms, policy, told.alive, every=True)
        plans: tuple[str, ...] = ()
        counts: dict[str, int] = {}
        if together.letters:
            plan = plan_for(desk, together.letters, actor.who, now_ms, policy)
            tally, _ = _send(desk, plan, actor, told, keep=False)
            plans, counts = (plan.plan_id,), dict(tally.counts)
            if tally.state != "finished":
                left = len(together.letters) - sum(counts.values())
                return Redriven("stopped", counts, plans, left, held=_keys_of(together.holds))
            through = _through(desk, plan, together)
        else:
            through = together.holds
        close_holds(desk, through)
        counts["cancelled"] = drop_heads(desk, group, through, actor, now_ms)
        desk.refresh()
        forget_done(desk)
        held = _keys_of([hold for hold in together.holds if hold not in through])
        return Redriven("finished", counts, plans, len(together.letters) - counts.get("written", 0), held=held)


def _still(desk: Desk, prepared: Prepared) -> Prepared:
    """Without those that somebody did something about since it was prepared: one that was given up is not sent all the same."""
    refuse_another_topic(desk)
    kept: list[int] = []
    left: Counter[str] = Counter()
    for state in {letter.state for letter in prepared.letters}:
        as_it_was, others = only(desk, [each.number for each in prepared.letters if each.state == state], (state,))
        kept += as_it_was
        left.update(others)
    numbers = set(kept)
    letters = [letter for letter in prepared.letters if letter.number in numbers]
    newest = one_version_each(desk, prepared.group, letters)
    left[OTHER_VERSION] += len(letters) - len(newest)
    if not left.total():
        return prepared
    letters, numbers = newest, {letter.number for letter in newest}
    canary = [letter for letter in prepared.canary if letter.number in numbers]
    holds = prepared.holds
    if holds and letters:
        together = with_followers(
            desk, prepared.group, letters
        )  # what followed a record that was given up stays behind it
        letters, holds = together.letters, tuple(together.holds)
        left += together.left_out
        canary = _whole(letters, canary, holds)
    left_out = dict(Counter(prepared.left_out) + left)
    return replace(prepared, letters=tuple(letters), canary=tuple(canary), left_out=left_out, holds=holds)


def _verdict(tally: Tally, found: Outcomes | None) -> End | None:
    """Why a redrive ends with its canary; None: it goes on."""
    if tally.state != "finished" or found is None:
        return "cancelled" if tally.state == "cancelled" else "stopped"
    if found.failed or found.not_sent:
        return "canary failed"
    return None if found.known else "canary not known"


def _send(desk: Desk, plan: ReplayPlan, actor: Actor, told: Progress, keep: bool) -> tuple[Tally, str | None]:
    """`keep`: in a file, until it is through. One with letters of held keys is not to be taken up by itself: nobody would let them go."""
    surroundings = Surroundings(desk.cluster, desk.topics.prefix)
    options = run_options(surroundings, plan, actor.who, progress=told.tally, alive=told.alive)
    file = desk.plan_path(plan.plan_id) if keep else None
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(to_text(plan), encoding="utf-8")
    reason = Reason(actor.who, actor.why, actor.command)
    tally = run_plan(surroundings, plan, reason, options, None, told.started)
    if tally.state == "finished" and file is not None:
        file.unlink(missing_ok=True)
    return tally, None if file is None or tally.state == "finished" else str(file)
