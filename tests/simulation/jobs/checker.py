"""What must hold in every history of jobs, checked from the facts alone. J1 to J9 are the promises of docs/guide/testing.md.

J1 every request has one ending, which stays; J2 one job per dedup window; J3 every tick fires once; J4 nothing begins early; J5 attempts
and stalls; J6 the order of a key, and limits of types; J7 progress; J8 lanes and turns; J9 what is told in the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.facts import Fact, Happened, JobBegan, JobEnded
from tests.simulation.jobs import endings
from tests.simulation.jobs.history import History, Life, Request, read
from tests.simulation.jobs.reading import TERMINAL
from tests.simulation.jobs.scenario import LANES, JobScenario

LATE_MS = 300
"""By so much a worker may take the cluster's time for earlier than it is."""
HEARD_MS, NEVER_MS = 60_000, 1 << 60
"""By then whoever owns a partition has read what stands in its inbox."""
LANE_BOUND = 2 * sum(LANES) + len(LANES)
"""So many others begin at most between two of a lane in which something waits."""


@dataclass(slots=True)
class Doing:
    """What an owner has done so far. `over`: jobs that it saw end. `left`: by key, what has begun before its time, as the store says."""

    life: Life
    ran: Counter[tuple[str, int]] = field(default_factory=Counter)
    holding: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    left: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    over: set[str] = field(default_factory=set)
    first: list[Request] = field(default_factory=list)
    since: list[int] = field(default_factory=lambda: [0] * len(LANES))


class JobChecker:
    """`repeats`: executions of an attempt that had run before."""

    def __init__(self, scenario: JobScenario) -> None:
        self.scenario = scenario
        self.seen: Counter[str] = Counter()
        self.repeats = self.published = self.executions = 0
        self._doing: dict[tuple[int, int], Doing] = {}
        self._not_before: dict[tuple[str, int], int] = {}
        self._ever: Counter[tuple[str, int]] = Counter()
        self._started: dict[str, int] = {}
        self._set_back_ms = 0
        self._busy: Counter[str] = Counter()
        self._busy_with: Counter[tuple[str, str]] = Counter()
        self.history = History()

    def check(self, facts: list[Fact]) -> list[str]:
        self.history = history = read(self.scenario, facts)
        found: list[str] = []
        for key, life in history.lives.items():
            self._doing[key] = Doing(life)
            for name, entry in life.durable.items():
                request = history.requests.get(name)
                if request is not None and request.key is not None and entry.begun:
                    self._doing[key].left[request.key].add(name)
        for index, fact in enumerate(facts):
            if isinstance(fact, JobBegan):
                found += self._on_began(index, fact)
            elif isinstance(fact, JobEnded):
                self._on_ended(fact)
            elif isinstance(fact, Happened):
                self._on_happened(fact)
        found += endings.check(self.scenario, history, facts, self.seen)
        self.published, self.executions = len(history.requests), len(history.began)
        self.seen["claim"] += len(history.lives)
        return found

    # -- executions

    def _on_began(self, index: int, fact: JobBegan) -> Iterator[str]:
        history = self.history
        doing, request = self._doing.get((fact.partition, fact.epoch)), history.requests.get(fact.job_id)
        if doing is not None and request is None and "@" in fact.job_id:
            self.seen["a tick of a stranger alone"] += 1
            return
        if doing is None or request is None:
            yield f"J1: #{fact.number} ran {fact.job_id} in epoch {fact.epoch} of {fact.partition}, which nobody claimed or asked for"
            return
        trusted = fact.partition not in history.put_back
        again = any(at < index for at in history.again[fact.job_id])
        if trusted:
            yield from self._check_over(index, fact, doing, again)
            yield from self._check_attempt(fact, request, doing, again)
        yield from self._check_time(index, fact, request, again)
        yield from self._check_limits(fact, request)
        if trusted:
            yield from self._check_key(index, fact, request, doing)
            yield from self._check_turn(index, fact, request, doing)
        doing.over.discard(request.id)
        if request.key is not None:
            doing.holding[request.key].add(request.id)
            doing.left[request.key].discard(request.id)
        self._started.setdefault(request.id, index)
        self._busy[fact.worker] += 1

    def _check_over(self, index: int, fact: JobBegan, doing: Doing, again: bool) -> Iterator[str]:
        """J1: what has its ending begins only where an operator gives it another round."""
        if again:
            self.seen["another round"] += 1
            return
        cancelled_ms = self.history.cancelled_ms.get(fact.job_id, NEVER_MS)
        if fact.at_ms > cancelled_ms + HEARD_MS:
            yield f"J1: #{fact.number}: {fact.job_id} began {fact.at_ms - cancelled_ms} ms after its cancel was in the inbox"
        before = doing.life.durable.get(fact.job_id)
        if before is not None and before.state in TERMINAL:
            yield f"J1: #{fact.number}: {fact.job_id} began, and was {before.state} when its owner came"
        for at, entry in self.history.of(fact.job_id):
            if at < index and entry.state in TERMINAL and entry.epoch <= fact.epoch:
                if self.history.brought_back(fact.job_id, index):
                    self.seen["forgotten, and brought back by a commit that landed late"] += 1
                    return
                yield f"J1: #{fact.number}: {fact.job_id} began after it was {entry.state}"
                return

    def _check_attempt(self, fact: JobBegan, request: Request, doing: Doing, again: bool) -> Iterator[str]:
        """J5: an attempt runs again only in another life, and only if its ending was not durable when that began."""
        name, attempt = fact.job_id, fact.attempt
        if attempt > request.attempts:
            yield f"J5: #{fact.number}: attempt {attempt} of {request.attempts} of {name}"
        if fact.stalls > request.kind.stalls:
            yield f"J5: #{fact.number}: {name} began after {fact.stalls} stalls of {request.kind.stalls}"
        doing.ran[name, attempt] += 1
        if doing.ran[name, attempt] > 1 + len(self.history.again[name]):
            yield f"J5: attempt {attempt} of {name} ran twice in epoch {fact.epoch}"
        durable = doing.life.durable.get(name)
        if durable is not None and durable.what == "JobRecord" and not again:
            done = durable.fields["attempt"] - (durable.state == "RUNNING")
            if attempt <= done:
                yield f"J5: attempt {attempt} of {name} ran again in epoch {fact.epoch}, though {done} were over when that began"
        if attempt > 1 and (name, attempt) not in self._not_before:
            yield f"J5: #{fact.number}: attempt {attempt} of {name} began, but attempt {attempt - 1} never failed"
        if self._ever[name, attempt] and not again:
            self.repeats += 1
            self.seen["attempt repeated"] += 1
            if self.scenario.calm and not self.seen["jump"]:
                yield f"J5: attempt {attempt} of {name} was repeated without a cause"
        self._ever[name, attempt] += 1

    def _check_time(self, index: int, fact: JobBegan, request: Request, again: bool) -> Iterator[str]:
        """J4"""
        at_ms = fact.at_ms + self._set_back_ms
        hurried = self.history.hurried.get(request.id, index) < index
        due_ms = request.due_ms or (request.fields["created_ms"] if request.offset < 0 else 0)
        if at_ms < due_ms and not hurried and not again:
            yield f"J4: #{fact.number}: {request.id} began {due_ms - at_ms} ms before it was due"
        wanted = self._not_before.get((request.id, fact.attempt))
        if wanted is not None and at_ms < wanted and not again and not hurried:
            yield f"J4: #{fact.number}: attempt {fact.attempt} of {request.id} began {wanted - at_ms} ms early"
        expires_ms = request.fields["expires_ms"]
        if expires_ms and fact.at_ms >= expires_ms + LATE_MS and request.id not in self._started and not again:
            if any(0 < entry.fields.get("started_ms", 0) < expires_ms for _, entry in self.history.of(request.id)):
                return  # its owner died with it before its handler was called
            yield f"J4: #{fact.number}: {request.id} began {fact.at_ms - expires_ms} ms after it expired"

    def _check_limits(self, fact: JobBegan, request: Request) -> Iterator[str]:
        limit = request.kind.concurrency
        place = fact.worker, request.fields["type"]
        if limit and self._busy_with[place] >= limit:
            yield f"J6: #{fact.number}: more than {limit} of {place[1]} run at {fact.worker}"
        self._busy_with[place] += 1
        if self._busy[fact.worker] >= self.scenario.concurrency:
            yield f"J6: #{fact.number}: {fact.worker} runs more than {self.scenario.concurrency}"

    # -- order

    def _released(self, name: str, index: int, at_ms: int, doing: Doing) -> bool:
        """May others of its key begin? It has its ending, or something ended it that no handler saw."""
        history, request = self.history, self.history.requests[name]
        durable = doing.life.durable.get(name)
        if name in doing.over or history.cancelled.get(name, index) < index:
            return True
        if durable is None:
            return bool(request.fields["expires_ms"] and request.fields["expires_ms"] <= at_ms + LATE_MS)
        if durable.what != "JobRecord" or durable.state in TERMINAL:
            return True
        expired = request.fields["expires_ms"] and request.fields["expires_ms"] <= at_ms + LATE_MS
        return bool(durable.fields["stalls"] >= request.kind.stalls or (expired and not durable.fields["started_ms"]))

    def _check_key(self, index: int, fact: JobBegan, request: Request, doing: Doing) -> Iterator[str]:
        """J6: one of a key at a time, also across its retries; those that were due when they were asked for in their order."""
        if request.key is None:
            return
        mine = self._started.get(request.id, index)
        # Of those that an earlier owner left behind the later ones came behind endings whose writes were lost: they wait for them again.
        # What no handler has begun was only to begin.
        left = {other for other in doing.left[request.key] if self._started.get(other, index) < mine}
        for other in (doing.holding[request.key] | left) - {request.id}:
            if not self._released(other, index, fact.at_ms, doing):
                yield f"J6: #{fact.number}: {request.id} began although {other} of its key has begun and not ended"
        if request.id in self._started or not self._plain(request) or self._set_back_ms:
            return  # what came due when is told by the clock, also to the next owner
        for other_request in self.history.requests.values():
            before = other_request.partition == request.partition and 0 <= other_request.offset < request.offset
            same = before and other_request.key == request.key and self._plain(other_request)
            if same and not self._released(other_request.id, index, fact.at_ms, doing):
                yield f"J6: #{fact.number}: {request.id} began before {other_request.id}, which stands before it in the inbox"

    def _plain(self, request: Request) -> bool:
        """Nothing but its place in the inbox decides when it is its turn."""
        history, name = self.history, request.id
        return not (
            request.offset < 0 or request.due_ms or name in history.hurried or history.again[name]
            or not request.kind.declared or name in endings.duplicates(history)
        )  # fmt: skip

    def _check_turn(self, index: int, fact: JobBegan, request: Request, doing: Doing) -> Iterator[str]:
        """J8: of one tenant, type and priority first come, first served, after what had begun when its owner came; no lane in which
        something waits is passed over for long."""
        history = self.history
        free = self._plain(request) and request.key is None and not request.kind.concurrency
        before = doing.life.durable.get(request.id)  # may say so where the worker died before it called the handler
        first = free and request.id not in self._started and not (before is not None and before.begun)
        if first:
            doing.first.append(request)
        last = max((each.offset for each in doing.first), default=-1)
        waiting = [
            each
            for each in history.requests.values()
            if each.partition == fact.partition and 0 <= each.offset < last and each.key is None and self._plain(each)
            and not each.kind.concurrency and each.id not in self._started and each is not request
            and not self._released(each.id, index, fact.at_ms, doing)
        ]  # fmt: skip
        if first:
            for each in waiting:
                same = all(each.fields[name] == request.fields[name] for name in ("type", "tenant", "priority"))
                if same and each.offset < request.offset:
                    yield f"J8: #{fact.number}: {request.id} began before {each.id} of the same tenant, type and priority"
        lanes = {lane_of(each) for each in waiting}
        mine = lane_of(request)
        for lane in range(len(LANES)):
            doing.since[lane] = doing.since[lane] + 1 if lane in lanes and lane != mine else 0
            if doing.since[lane] > LANE_BOUND:
                yield f"J8: #{fact.number}: {doing.since[lane]} jobs began since the last one of lane {lane}, where some wait"

    def _on_ended(self, fact: JobEnded) -> None:
        began = self.history.began[fact.number]
        self.seen[f"job {fact.outcome}"] += 1
        self._busy[began.worker] -= 1
        doing, request = self._doing.get((began.partition, began.epoch)), self.history.requests.get(began.job_id)
        if doing is None or request is None:
            return
        self._busy_with[began.worker, request.fields["type"]] -= 1
        last = began.attempt >= request.attempts
        if fact.outcome in ("ok", "warned", "rejected") or last:
            doing.over.add(request.id)
            if request.key is not None:
                doing.holding[request.key].discard(request.id)
        if fact.outcome in ("failed", "cancelled"):
            place, due_ms = (request.id, began.attempt + 1), fact.at_ms + fact.wait_ms
            self._not_before[place] = min(due_ms, self._not_before.get(place, due_ms))

    def _on_happened(self, fact: Happened) -> None:
        self.seen[fact.kind] += 1
        if fact.kind in ("jump", "stall"):
            self._set_back_ms += max(0, -int(fact.about))


def lane_of(request: Request) -> int:
    priority = int(request.fields["priority"])
    return 0 if priority >= 10 else 1 if priority >= 0 else 2
