"""What must hold of a board's life, from the facts alone: what was asked, what is in the store, and what ran when."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.model.cron import Misfire
from pipeline.model.jobs import (
    JobDuplicate,
    JobRecord,
    JobRequest,
    RetryJob,
    RunJobNow,
    ScheduleRecord,
)
from pipeline.model.outcome import Cancelled, Failure
from tests.property.board_world import EVERY_MS, TYPES, Fact, Told

TERMINAL = {"completed", "completed_with_warning", "failed", "cancelled", "dead_letter"}


@dataclass(slots=True)
class Known:
    """A job, as the checker sees it while it reads the facts."""

    request: JobRequest
    offset: int
    began: list[Fact] = field(default_factory=list)
    started: bool = False
    excused: int = 0
    failed: Fact | None = None


class Checker:
    def __init__(self, told: Told) -> None:
        self.told = told
        self.problems = list(told.problems)
        self.jobs: dict[str, Known] = {}
        for offset, (_, asked) in enumerate(told.inbox):
            if isinstance(asked, JobRequest):
                self.jobs.setdefault(asked.id, Known(asked, offset))
        self.retried = {asked.job_id for _, asked in told.inbox if isinstance(asked, RetryJob)}
        self.now = {asked.job_id for _, asked in told.inbox if isinstance(asked, RunJobNow)}
        self.records: dict[str, Sequence[JobRecord]] = {}
        self.duplicates: dict[str, JobDuplicate] = {}
        self.ticks: dict[str, list[JobRecord]] = defaultdict(list)
        self.schedules: dict[str, ScheduleRecord] = {}
        self._read()
        self.records = {**dict.fromkeys(self.jobs, ()), **self.records}

    def _read(self) -> None:
        for key, value in self.told.log:
            name = key.decode().partition("/")[2]
            if value is None:
                self.schedules.pop(name, None)
                continue
            entry = pickle.loads(value)
            if isinstance(entry, JobRecord):
                self.records[name] = [*self.records.get(name, ()), entry]
                if entry.request.schedule is not None:
                    self.jobs.setdefault(name, Known(entry.request, -1))
            elif isinstance(entry, JobDuplicate):
                self.duplicates[name] = entry
            elif isinstance(entry, ScheduleRecord):
                self.schedules[name] = entry

    def check(self) -> list[str]:
        for check in (self._endings, self._dedup, self._ticks, self._executions, self._keys, self._letters):
            self.problems += check()
        return self.problems

    # -- states

    def _endings(self) -> Iterator[str]:
        for name in self.jobs:
            records = self.records.get(name, [])
            if name in self.duplicates:
                if records:
                    yield f"{name} is a duplicate and a job"
                continue
            if not records:
                yield f"{name} was asked for and is not in the store"
                continue
            for before, after in itertools.pairwise(records):
                if after.version < before.version:
                    yield f"{name}: version {after.version} after {before.version}"
                was, now = before.state.value, after.state.value
                if was in TERMINAL and now != was and not (name in self.retried and after.offset > before.offset):
                    yield f"{name} was {was} and then {now}"
            if records[-1].state.value not in TERMINAL:
                yield f"{name} ended as {records[-1].state.value}"
            for record in records:
                if record.stalls > TYPES[record.request.type].max_stalled_count + 1:
                    yield f"{name} stalled {record.stalls} times"

    # -- dedup

    def _dedup(self) -> Iterator[str]:
        firsts: dict[tuple[str, str], Known] = {}
        for name, job in self.jobs.items():
            request = job.request
            if request.dedup_id is None or request.type == "released":
                continue
            first = firsts.get((request.type, request.dedup_id))
            if first is not None and request.created_ms < first.request.created_ms + first.request.dedup_window_ms:
                if name not in self.duplicates or self.duplicates[name].of != first.request.id:
                    yield f"{name} is no duplicate of {first.request.id}"
            else:
                firsts[request.type, request.dedup_id] = job
                if name in self.duplicates:
                    yield f"{name} is a duplicate and nobody came before it in its window"
        yield from self._released()

    def _released(self) -> Iterator[str]:
        """A window that was released by a failure: nobody else of it began before."""
        completed: dict[str, str] = {}
        for name, job in self.jobs.items():
            request = job.request
            if request.type != "released" or request.dedup_id is None:
                continue
            if name in self.duplicates:
                first = self.jobs[self.duplicates[name].of]
                if request.created_ms >= first.request.created_ms + first.request.dedup_window_ms:
                    yield f"{name} is a duplicate of one whose window was over"
                continue
            before = completed.get(request.dedup_id)
            if before is not None and before not in self.retried:
                first = self.jobs[before]
                if request.created_ms < first.request.created_ms + first.request.dedup_window_ms:
                    yield f"{name} ran in the window of {before}, which completed"
            if self.records[name] and self.records[name][-1].state.value.startswith("completed"):
                completed[request.dedup_id] = name

    # -- ticks

    def _ticks(self) -> Iterator[str]:
        fired: dict[str, Counter[int]] = defaultdict(Counter)
        for name, records in self.records.items():
            request = self.jobs[name].request
            if records and request.schedule is not None and "!" not in name:
                fired[request.schedule][request.created_ms] += 1
        for schedule, ticks in fired.items():
            for tick_ms, count in ticks.items():
                if count > 1:
                    yield f"{schedule}: {count} jobs for the tick {tick_ms}"
                if tick_ms % EVERY_MS:
                    yield f"{schedule}: {tick_ms} is no tick"
        for name, record in self.schedules.items():
            if record.schedule.misfire is Misfire.ALL:
                wanted = set(range(self._first_tick(name), record.next_ms, EVERY_MS))
                if missing := wanted - set(fired[name]):
                    yield f"{name}: {len(missing)} of {len(wanted)} ticks did not fire, such as {min(missing)}"
            if not record.paused and record.next_ms <= self.told.now_ms - 2 * EVERY_MS:
                yield f"{name}: it stands at {record.next_ms}, and it is {self.told.now_ms}"

    def _first_tick(self, name: str) -> int:
        """Of the first entry: it may have been put earlier by somebody whose entry was lost."""
        for key, value in self.told.log:
            if key == f"s/{name}".encode() and value is not None:
                first: ScheduleRecord = pickle.loads(value)
                return first.next_ms
        raise LookupError(name)

    # -- executions

    def _executions(self) -> Iterator[str]:
        crashed = 0
        for fact in self.told.facts:
            job = self.jobs.get(fact.job_id)
            if fact.what == "crashed":
                crashed += 1
            if job is None:
                continue
            if fact.what == "began":
                yield from self._began(job, fact)
                job.began.append(fact)
            if fact.what == "began" or (fact.what == "wrote" and fact.how == "running"):
                job.started = True
            if fact.what == "lost" or (
                fact.what == "ended" and (fact.how == "stalled" or isinstance(fact.how, Cancelled))
            ):
                job.excused += 1
            elif fact.what == "ended" and isinstance(fact.how, Failure):
                job.failed = fact
        for name, job in self.jobs.items():
            attempts = job.request.attempts or TYPES[job.request.type].attempts
            if name not in self.retried and len(job.began) > attempts + job.excused:
                yield f"{name} ran {len(job.began)} times: {attempts} attempts and {job.excused} that were lost"
            for record in self.records[name]:
                if record.attempt > attempts:
                    yield f"{name}: attempt {record.attempt} of {attempts}"

    def _began(self, job: Known, fact: Fact) -> Iterator[str]:
        request = job.request
        if request.id in self.now:
            return
        if fact.now_ms < max(request.due_ms, request.created_ms) and request.id not in self.retried:
            yield f"{request.id} began {request.due_ms - fact.now_ms} ms early"
        if (
            request.expires_ms
            and fact.now_ms >= request.expires_ms
            and not job.started
            and request.id not in self.retried
        ):
            yield f"{request.id} began after it expired"
        failed = job.failed
        if failed is not None and failed.life == fact.life and request.id not in self.retried:
            assert isinstance(failed.how, Failure)
            least_ms = failed.how.after_ms if failed.how.after_ms is not None else TYPES[request.type].backoff.delay_ms
            if fact.now_ms - failed.now_ms < least_ms:
                yield f"{request.id} was tried again after {fact.now_ms - failed.now_ms} ms, not {least_ms}"
        job.failed = None

    # -- keys

    def _keys(self) -> Iterator[str]:
        """Whoever of a key began first and has no ending yet is the only one that may begin."""
        order: dict[str, int] = {}
        ended: set[str] = set()
        for at, fact in enumerate(self.told.facts):
            if fact.what == "crashed":
                assert isinstance(fact.how, int)
                ended = self._ended_in_store(fact.how)
            if fact.what == "wrote":
                (ended.add if fact.how in TERMINAL else ended.discard)(fact.job_id)
            job = self.jobs.get(fact.job_id)
            if fact.what != "began" or job is None:
                continue
            if fact.job_id in ended:
                yield f"{fact.job_id} began and had ended"
            if job.request.key is not None:
                order.setdefault(fact.job_id, at)
                for other, began in order.items():
                    same = self.jobs[other].request.key == job.request.key
                    if same and began < order[fact.job_id] and other not in ended:
                        yield f"{fact.job_id} began although {other} of its key has begun and not ended"
        yield from self._admission_order(order)

    def _ended_in_store(self, length: int) -> set[str]:
        last: dict[str, str] = {}
        for key, value in self.told.log[:length]:
            if key.startswith(b"j/") and value is not None:
                entry = pickle.loads(value)
                if isinstance(entry, JobRecord):
                    last[entry.request.id] = entry.state.value
        return {name for name, state in last.items() if state in TERMINAL}

    def _admission_order(self, order: dict[str, int]) -> Iterator[str]:
        """Those that were due when they were asked for begin in the order of the inbox, those with a time by their time."""
        last: dict[str, tuple[int, int, str]] = {}
        timed: dict[str, tuple[int, int, str]] = {}
        for name in sorted(order, key=lambda each: order[each]):
            job = self.jobs[name]
            if name in self.now or job.offset < 0 or job.request.key is None:
                continue
            if not job.request.due_ms:
                before = last.get(job.request.key, (-1, -1, ""))
                if job.offset < before[0]:
                    yield f"{name} began after {before[2]}, which came behind it"
                last[job.request.key] = (job.offset, 0, name)
            elif self._last_admitted(name) < job.request.due_ms:
                place = (job.request.due_ms, job.offset, name)
                if place < timed.get(job.request.key, (-1, -1, "")):
                    yield f"{name} began after {timed[job.request.key][2]}, which was due later"
                timed[job.request.key] = place

    def _last_admitted(self, name: str) -> int:
        """One that is read again since its entry was lost may be due by then: it came due as it was read."""
        return max(fact.now_ms for fact in self.told.facts if fact.what == "admitted" and fact.job_id == name)

    # -- dead letters

    def _letters(self) -> Iterator[str]:
        written = {record.request.id for record in self.told.letters}
        for name, records in self.records.items():
            if records and records[-1].state.value == "dead_letter" and (name not in written or records[-1].letter_due):
                yield f"{name} has no dead letter"


def problems(told: Told) -> list[str]:
    return Checker(told).check()
