"""What must hold of a history of jobs when all have stopped: of the store, of dedup windows, of ticks, of what callers were told."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from tests.simulation.facts import Fact
from tests.simulation.jobs.history import History
from tests.simulation.jobs.reading import GOOD, TERMINAL, Entry
from tests.simulation.jobs.scenario import KINDS, MISFIRE_MS, TICK_EVERY_MS, JobScenario

BEHIND_MS = 4_000
"""By so much a schedule may be behind in peace."""


def check(scenario: JobScenario, history: History, facts: list[Fact], seen: Counter[str]) -> Iterator[str]:
    yield from _endings(history, seen)
    yield from _dedup(history, seen)
    yield from _ticks(history, seen)
    yield from _truth(history, seen)
    yield from _told(history, seen)


def duplicates(history: History) -> dict[str, str]:
    """Request -> the job that it is the same as."""
    found = {}
    for partition, entries in history.entries.items():
        for _, entry in entries:
            if entry.what == "JobDuplicate" and entry.offset in history.believed[partition]:
                found[entry.name] = entry.fields["of"]
    return found


# -- J1, J5


def _endings(history: History, seen: Counter[str]) -> Iterator[str]:
    same = duplicates(history)
    for name, request in history.requests.items():
        entries = [entry for _, entry in history.of(name)]
        if not entries:
            yield f"J1: {name} was asked for and is not in the store"
            continue
        if name in same:
            if any(entry.what == "JobRecord" for entry in entries):
                yield f"J1: {name} is a duplicate and a job"
            continue
        if request.partition not in history.put_back:
            yield from _moves(history, name, entries)
        records = [entry for entry in entries if entry.what == "JobRecord"]
        last = records[-1] if records else entries[-1]
        seen[f"state: {last.state}"] += 1
        seen["forgotten"] += entries[-1].what == ""
        seen["expired"] += last.state == "CANCELLED" and last.fields["outcome"]["reason"] == "expired"
        seen["stalled"] += any(entry.fields["stalls"] for entry in records)
        if last.state not in TERMINAL:
            yield f"J1: {name} ended as {last.state or 'nothing'}"
        lives = sum(1 for of, _ in history.lives if of == request.partition)
        for record in records:
            if record.fields["attempt"] > request.attempts:
                yield f"J5: {name}: attempt {record.fields['attempt']} of {request.attempts}"
            if record.fields["stalls"] > min(request.kind.stalls + 1, lives - 1):
                yield f"J5: {name} stalled {record.fields['stalls']} times, of {request.kind.stalls}, with {lives} owners"


def _moves(history: History, name: str, entries: list[Entry]) -> Iterator[str]:
    for before, after in itertools.pairwise(entries):
        if after.what != "JobRecord" or before.what != "JobRecord":
            if after.what == "" and before.state not in TERMINAL and before.what:
                yield f"J1: {name} was {before.state} and is forgotten"
            continue
        if after.fields["version"] < before.fields["version"]:
            yield f"J1: {name}: version {after.fields['version']} after {before.fields['version']} in the store"
        if before.state in TERMINAL and after.state != before.state and not history.again[name]:
            yield f"J1: {name} was {before.state} and then {after.state}"


# -- J2


def _dedup(history: History, seen: Counter[str]) -> Iterator[str]:
    same = duplicates(history)
    seen["duplicate"] += len(same)
    firsts: dict[tuple[int, str, str], str] = {}
    older: set[tuple[int, str, str, str | None]] = set()
    """Jobs whose window begins before the one that was known: the broker's clock was put back. It counts when the one that was known is
    over, where a new owner finds the job."""
    for request in sorted(history.requests.values(), key=lambda each: each.offset):
        dedup_id = request.fields["dedup_id"]
        if dedup_id is None:
            continue
        place = request.partition, request.fields["type"], dedup_id
        first = history.requests.get(firsts.get(place, ""))
        until_ms = first.at_ms + first.fields["dedup_window_ms"] if first is not None else 0
        inside = request.at_ms < until_ms
        if first is not None and request.at_ms < first.at_ms:
            if request.id not in same:
                older.add((*place, request.id))
            continue
        if not inside and (*place, same.get(request.id)) in older:
            first = history.requests[same[request.id]]
            until_ms = first.at_ms + first.fields["dedup_window_ms"]
            inside = request.at_ms < until_ms
        if inside and request.latest_ms >= until_ms:
            seen["asked for in a window that was over once"] += 1  # put back, too: the window may be forgotten by now
            if request.id not in same:
                firsts[place] = request.id
            continue
        released = first is not None and request.kind.release and not _good(history, first.id)
        if request.id in same:
            if first is None or (same[request.id] != first.id and not request.kind.release):
                yield f"J2: {request.id} is a duplicate of {same[request.id]}, not of {first.id if first else 'nothing'}"
            elif not inside and not request.kind.release:
                yield f"J2: {request.id} is a duplicate of {first.id}, whose window was over"
        else:
            if inside and not released and first is not None:
                yield f"J2: {request.id} ran in the window of {first.id}"
            firsts[place] = request.id


def _good(history: History, name: str) -> bool:
    """It completed, and was never given up before."""
    entries = [entry for _, entry in history.of(name) if entry.what == "JobRecord"]
    return all(entry.state in GOOD for entry in entries if entry.state in TERMINAL)


# -- J3


def _ticks(history: History, seen: Counter[str]) -> Iterator[str]:
    for name, request in history.requests.items():
        if request.offset >= 0 or "!" in name:
            continue
        seen["tick"] += 1
        if int(name.rpartition("@")[2]) % TICK_EVERY_MS:
            yield f"J3: {name} is no tick"
    for partition, entries in history.entries.items():
        if partition in history.put_back:
            continue
        known: dict[str, Entry] = {}
        for _, entry in entries:
            if entry.kind != "s" or entry.offset not in history.believed[partition]:
                continue
            before = known.get(entry.name)
            if before is not None and before.what:
                yield from _moved_on(history, before, entry) if entry.what else _dropped(before, entry)
            known[entry.name] = entry


def _moved_on(history: History, before: Entry, after: Entry) -> Iterator[str]:
    """From one entry of a schedule to the next: each tick between them has its job."""
    if after.fields["offset"] != before.fields["offset"] or before.fields["paused"]:
        return
    ticks = range(before.fields["next_ms"], after.fields["next_ms"], TICK_EVERY_MS)
    fired = [tick for tick in ticks if f"{after.name}@{tick}" in history.requests]
    misfire = before.fields["schedule"]["misfire"]
    for tick in ticks:
        in_time = tick >= after.at_ms - MISFIRE_MS
        if tick not in fired and (misfire == "ALL" or in_time):
            yield f"J3: {after.name}: the tick {tick} did not fire, and the next one is {after.fields['next_ms']}"
    goes_on = after.fields["next_ms"] < after.at_ms - MISFIRE_MS  # the last one that was missed is still to come
    if misfire == "ONCE" and len(ticks) and not fired and not goes_on:
        yield f"J3: {after.name}: none of the ticks up to {ticks[-1]} has fired"


def _dropped(before: Entry, drop: Entry) -> Iterator[str]:
    next_ms = before.fields["next_ms"]
    if not before.fields["paused"] and drop.at_ms - before.at_ms > BEHIND_MS and next_ms < drop.at_ms - BEHIND_MS:
        yield f"J3: {drop.name} stood at {next_ms} when it was dropped at {drop.at_ms}"


# -- J9


def _truth(history: History, seen: Counter[str]) -> Iterator[str]:
    for partition, end in history.ends.items():
        settled = history.settled.get(partition, (0, 0))[0]
        if settled < end:
            yield f"J1: the inbox's partition {partition} is settled up to {settled}, and ends at {end}"
    for partition, entries in history.entries.items():
        believed = history.believed[partition]
        last = {(entry.kind, entry.name): entry for _, entry in entries}
        true = {(entry.kind, entry.name): entry for _, entry in entries if entry.offset in believed}
        for (kind, name), entry in last.items():
            if entry.offset not in believed and (kind, name) in true and entry.fields != true[kind, name].fields:
                yield f"J9: {kind}/{name} stands in the store as a stranger wrote it"
        seen["a stranger's entry"] += sum(entry.offset not in believed for _, entry in entries)
        for (kind, name), entry in true.items():
            if kind == "s" and entry.what:
                yield f"J9: schedule {name} was dropped and is in the store"
    outcomes: dict[str, list[tuple[int, str]]] = {}
    for number, began in history.began.items():
        ended = history.ended.get(number)
        outcomes.setdefault(began.job_id, []).append((number, ended.outcome if ended else ""))
    for name, request in history.requests.items():
        entries = [entry for _, entry in history.of(name)]
        records = [entry for entry in entries if entry.what == "JobRecord"]
        if records:
            yield from _accords(history, name, records[-1], outcomes.get(name, []))
            # Where that write failed, the tombstone stands in the place of the entry which says that the letter is there.
            if entries[-1].what and records[-1].state == "DEAD_LETTER" and records[-1].fields["letter_due"]:
                yield f"J9: {name} still owes its dead letter"
            if request.fields["type"] not in KINDS:
                yield f"J9: {name} is of no type"


def _accords(history: History, name: str, last: Entry, ran: list[tuple[int, str]]) -> Iterator[str]:
    """The last entry of a job says what came of it."""
    state, outcome = last.state, last.fields["outcome"]
    if state == "COMPLETED":
        result = outcome["result"]
        if (int(result or b"-1"), "ok") not in ran:
            yield f"J9: {name} completed with {result!r}, which no execution of it gave"
    elif state == "COMPLETED_WITH_WARNING":
        if not any(how == "warned" for _, how in ran):
            yield f"J9: {name} completed with a warning that no execution of it gave"
    elif state == "CANCELLED":
        expired = outcome["reason"] == "expired"
        if not expired and name not in history.cancelled:
            yield f"J9: {name} is cancelled, and nobody asked for that"
        if expired and not history.requests[name].fields["expires_ms"]:
            yield f"J9: {name} is expired, and had no such time"
    elif state == "DEAD_LETTER":
        if not history.letters[name]:
            yield f"J9: {name} has no dead letter"
    elif state == "FAILED" and history.requests[name].kind.dead_letter:
        yield f"J9: {name} failed without a dead letter"


def _told(history: History, seen: Counter[str]) -> Iterator[str]:
    """Callers are told what stands in the store."""
    same = duplicates(history)
    for told in history.told:
        if told.told in ("accepted", "refused"):
            seen[told.told] += 1
            if told.told == "accepted" and told.job_id and told.job_id not in history.requests:
                yield f"J1: {told.job_id} was accepted and is not in the inbox"
            continue
        name = same.get(told.job_id, told.job_id)
        seen["asked in the end" if told.told.startswith("is ") else "result waited for"] += 1
        if name not in history.requests:
            yield f"J9: {told.job_id} is told as {told.told} and was never asked for"
            continue
        entries = [entry for _, entry in history.of(name)]
        last = [entry for entry in entries if entry.what == "JobRecord"][-1:]
        forgotten = any(not entry.what for entry in entries)
        if told.told in ("is missing", "missing"):
            if not forgotten and not any(not entry.what for _, entry in history.of(told.job_id)):
                yield f"J9: {told.job_id} is told as missing and is in the store"
        elif last and not _same(told.told, last[0]) and not history.again[name]:
            if _told_by_a_stranger(history, name, told.told):
                seen["told by an owner that had lost it"] += 1
                continue
            yield f"J9: {told.job_id} is told as {told.told}, and is {last[0].state}"


def _same(told: str, last: Entry) -> bool:
    state = last.state.lower()
    if told.startswith("is "):
        return told[3:] == state
    if told.startswith("completed "):
        if not state.startswith("completed"):
            return False  # an owner that had lost it wrote of it what has no outcome
        result = last.fields["outcome"]["result"]
        return told[10:] == (result.decode() if result else "None")
    return told == state


def _told_by_a_stranger(history: History, name: str, told: str) -> bool:
    """It stands so in the store, written by an owner whose partition had been taken, before the new one wrote anything: no reader can
    tell, and what the new one made of the job is another thing."""
    newest = 0
    partition = history.requests[name].partition
    for _, entry in history.entries[partition]:
        newest = max(newest, entry.epoch)
        strange = entry.offset not in history.believed[partition] and entry.epoch == newest
        if strange and (entry.kind, entry.name, entry.what) == ("j", name, "JobRecord") and _same(told, entry):
            return True
    return False
