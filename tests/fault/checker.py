"""Judges a history by the invariants I1-I8, independently of the product's own rules: what is lost, doubled, out of order, early,
or committed while it was not settled.

Each finding is a sentence; `Findings.problems` are those that no row may have.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.model.cluster import TopicPartition
from tests.fault.history import Blind, Copy, History, Origin, by_origin
from tests.integration.commit_log import Stored, setbacks
from tests.integration.ledger import Mark

CLOCK_S = 0.002
"""Times of the ledger and of the broker are of one machine, rounded to milliseconds."""
IN_TRANSACTION_S = 10.0
"""A copy and the offset that passes its original are in one transaction: seen together, written in any order while it is open."""
SEEN_AT_MOST = 5


@dataclass
class Findings:
    """What was found, in words. `repeated`: executions that ended well more than once, and dead letters written twice."""

    lost: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    two_endings: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    setbacks: list[str] = field(default_factory=list)
    outputs_lost: list[str] = field(default_factory=list)
    outputs_twice: list[str] = field(default_factory=list)
    outputs_disorder: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    def problems(self, *, repeats: bool = True) -> dict[str, list[str]]:
        """What breaks an invariant; `repeats`: the row may run again what was in flight (else a repeat is a problem too)."""
        allowed = {"repeated", "outputs_twice"} if repeats else set()
        return {name: found for name, found in vars(self).items() if found and name not in allowed}

    def text(self, **how: bool) -> str:
        return "; ".join(
            f"{len(found)} {name}: {', '.join(found[:SEEN_AT_MOST])}" for name, found in self.problems(**how).items()
        )


def judge(history: History, exactly_once: bool = False) -> Findings:
    """Everything that is wrong with a history that has come to its end."""
    found = Findings()
    _endings(history, found)
    _repeats(history, found)
    found.disorder.extend(_disorder(history))
    found.early.extend(_early(history))
    _commits(history, found, IN_TRANSACTION_S if exactly_once else CLOCK_S)
    _outputs(history, found, exactly_once)
    return found


def _endings(history: History, found: Findings) -> None:
    """I1 and I2: every acknowledged record is readable, and done or a dead letter, not both."""
    done = {(m.partition, m.offset) for m in history.marks if m.what == "done"}
    dead = Counter(copy.origin for copy in history.dead)
    for origin, sent in history.sent.items():
        if history.source.get(origin) != sent.number:
            found.unread.append(f"{origin} {sent.key} holds {history.source.get(origin)}, not {sent.number}")
        if origin not in done and origin not in dead:
            found.lost.append(f"{origin} {sent.key}")
        if origin in done and origin in dead:
            found.two_endings.append(f"{origin} {sent.key} is done and a dead letter")
    found.repeated.extend(f"{origin} is {count} dead letters" for origin, count in dead.items() if count > 1)


def _repeats(history: History, found: Findings) -> None:
    """I4: what ran again, and whether it ran again though a stored commit already called it settled."""
    copies = by_origin(history.lanes)
    started: dict[tuple[int, Origin], Mark] = {}
    ended: Counter[Origin] = Counter()
    for mark in history.marks:
        origin = (mark.partition, mark.offset)
        if mark.what == "start":
            started[mark.pid, origin] = mark
            if ended[origin] and not history.is_blind(mark):
                settled_ms = history.covered_at(origin, copies.get(origin, ()))
                if settled_ms < (mark.at - CLOCK_S) * 1000:
                    late_s = mark.at - settled_ms / 1000
                    found.needless.append(
                        f"{origin} {mark.key} ran again {late_s:.3f} s after its commit was stored, in {mark.pid}"
                    )
        elif mark.what in ("done", "reject"):
            ended[origin] += 1
            if ended[origin] > 1:
                found.repeated.append(f"{origin} {mark.key} {mark.what} {ended[origin]} times, by {mark.pid}")


def _final_failures(history: History) -> dict[Origin, int]:
    """Dead letters by attempts used up: the attempt that was the last."""
    return {copy.origin: copy.attempt for copy in history.dead}


def _disorder(history: History) -> Iterator[str]:
    """I3: when a record starts for the first time, all lower ones of its key have ended."""
    last = _final_failures(history)
    keys: dict[tuple[int, str], list[int]] = defaultdict(list)
    for origin, sent in history.sent.items():
        keys[origin[0], sent.key].append(origin[1])
    undecoded = set(last) - {(m.partition, m.offset) for m in history.marks}
    for place, offsets in keys.items():
        keys[place] = sorted(o for o in offsets if (place[0], o) not in undecoded)
    at: dict[tuple[int, str], int] = defaultdict(int)
    ended: set[Origin] = set()
    for mark in history.marks:
        origin = (mark.partition, mark.offset)
        if mark.what == "start":
            if origin in ended or history.is_blind(mark):
                continue
            place = (mark.partition, mark.key)
            offsets, index = keys[place], at[place]
            while index < len(offsets) and (mark.partition, offsets[index]) in ended:
                index += 1
            at[place] = index
            if index < len(offsets) and offsets[index] < mark.offset:
                yield (
                    f"{mark.key}: {origin} #{mark.attempt} started before {(mark.partition, offsets[index])} had ended"
                )
        elif mark.what in ("done", "reject") or (mark.what == "fail" and last.get(origin) == mark.attempt):
            ended.add(origin)


def _early(history: History) -> Iterator[str]:
    """I8: no attempt starts before its tier's delay since the failure before it is over; none is skipped. One that ended with its
    process was no failure of a handler, and is run again at once."""
    failed: dict[tuple[Origin, int], float] = {}
    began: set[tuple[Origin, int]] = set()
    if not history.tiers_s:
        return
    for mark in history.marks:
        origin = (mark.partition, mark.offset)
        if mark.what == "fail":
            failed.setdefault((origin, mark.attempt), mark.at)
        elif mark.what == "start":
            began.add((origin, mark.attempt))
            if mark.attempt == 1:
                continue
            before = failed.get((origin, mark.attempt - 1))
            wait_s = history.tiers_s[min(mark.attempt - 2, len(history.tiers_s) - 1)]
            if before is None:
                if (origin, mark.attempt - 1) not in began:
                    yield f"{origin} started as attempt {mark.attempt} with no attempt {mark.attempt - 1} before it"
            elif mark.at - before < wait_s - CLOCK_S:
                yield f"{origin} #{mark.attempt} started {mark.at - before:.3f} s after the failure, not {wait_s} s"


def _commits(history: History, found: Findings, slack_s: float) -> None:
    """I6: whatever a stored commit calls settled was done, or a copy of it was written, before; and no commit takes one back."""
    if not history.commits:
        return
    stored = [
        Stored(n, TopicPartition(c.topic, c.partition), c.progress.offset, "", c.progress)
        for n, c in enumerate(history.commits)
    ]
    found.setbacks.extend(setbacks(stored, history.name))
    settled_s = _settled_times(history)
    copies = by_origin(history.lanes)
    for origin, sent in history.sent.items():
        at_ms = history.covered.get((history.name, origin[0]), {}).get(origin[1])
        if at_ms is None:
            found.unsettled.append(f"{origin} {sent.key}")
        elif settled_s.get(origin, math.inf) > at_ms / 1000 + slack_s:
            found.passed.append(
                f"{origin} {sent.key} was committed past {_earlier(at_ms, settled_s.get(origin))} it was settled"
            )
    ends = {(m.partition, m.offset): m.at for m in reversed(history.marks) if m.what == "done"}
    for dead in history.dead:
        ends.setdefault(dead.origin, dead.written_ms / 1000)
    for lane in copies.values():
        found.passed.extend(_lane_passed(history, lane, ends, slack_s))


def _lane_passed(history: History, copies: list[Copy], ends: dict[Origin, float], slack_s: float) -> Iterator[str]:
    """A copy that is committed past was done, or went on in another copy, or did not count: then the record was open elsewhere."""
    for copy in copies:
        at_ms = history.covered.get((copy.topic, copy.partition), {}).get(copy.offset, math.inf)
        if at_ms == math.inf or ends.get(copy.origin, math.inf) <= at_ms / 1000 + slack_s:
            continue
        if history.covered.get((history.name, copy.origin[0]), {}).get(copy.origin[1], math.inf) > at_ms:
            continue  # the source still had it
        others = [c for c in copies if c is not copy and c.written_ms <= at_ms + slack_s * 1000]
        if not any(c.hop >= copy.hop or history.covered_at(c.origin, [c]) > at_ms for c in others):
            yield f"{copy.origin} hop {copy.hop} in {copy.topic} was committed past before it had ended"


def _settled_times(history: History) -> dict[Origin, float]:
    """When each record could first be committed past in the source: done, or its first copy written (seconds)."""
    found: dict[Origin, float] = {}

    def note(origin: Origin, at_s: float) -> None:
        found[origin] = min(found.get(origin, math.inf), at_s)

    for mark in history.marks:
        if mark.what == "done":
            note((mark.partition, mark.offset), mark.at)
    for copy in (*history.lanes, *history.dead):
        note(copy.origin, copy.written_ms / 1000)
    return found


def _earlier(at_ms: int, settled_s: float | None) -> str:
    return "though never" if settled_s is None else f"{settled_s - at_ms / 1000:.3f} s before"


def _outputs(history: History, found: Findings, exactly_once: bool) -> None:
    """I5, and for at_least_once at least once: each output there, in the order of its key; a reader beside saw the same."""
    counts = Counter(history.outputs)
    done = {(m.partition, m.offset) for m in history.marks if m.what == "done"}
    for origin, sent in history.sent.items():
        if sent.emits and origin in done and not counts[origin]:
            found.outputs_lost.append(f"{origin} {sent.key}")
    twice = [f"{origin} {count} times" for origin, count in counts.items() if count > 1]
    (found.two_endings if exactly_once else found.outputs_twice).extend(twice)
    if history.seen is not None and list(history.seen) != list(history.outputs):
        found.outputs_lost.append(
            f"a reader beside saw {len(history.seen)} outputs, of {len(history.outputs)}, or in another order"
        )
    last: dict[tuple[int, str], int] = {}
    first: set[Origin] = set()
    for origin in history.outputs:
        sent = history.sent.get(origin)
        if sent is None or origin in first:
            continue
        first.add(origin)
        place = (origin[0], sent.key)
        if last.get(place, -1) > origin[1]:
            found.outputs_disorder.append(f"{sent.key}: the output of {origin} came behind that of {last[place]}")
        last[place] = max(last.get(place, -1), origin[1])


def recovery_s(marks: Iterable[Mark], sent: Iterable[Origin], healed_at: float) -> float:
    """I7: from the heal until every partition that still had something to do had done something."""
    after: dict[int, float] = {}
    last: dict[Origin, float] = {}
    for mark in marks:
        if mark.what != "start":
            last[mark.partition, mark.offset] = mark.at
            if mark.at > healed_at:
                after.setdefault(mark.partition, mark.at)
    waiting = {origin[0] for origin in sent if last.get(origin, 0.0) > healed_at}
    return max((after[partition] - healed_at for partition in waiting), default=0.0)


__all__ = ["Blind", "Findings", "History", "judge", "recovery_s"]
