"""Which job is next: timers, lanes and their weights, tenants' shares, priorities, ages, limits, keys; and nobody starves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.jobs.fairness import DEAD_AGES, Lane, Share
from pipeline.core.jobs.job import Job, Kind
from pipeline.core.jobs.keys import KeyOrder
from pipeline.core.jobs.lanes import Lanes
from pipeline.core.jobs.timers import Timers
from pipeline.model.job_policies import HIGH, LOW, NORMAL, JobPolicy, QueuePolicy, lane_of
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRequest

NOW = 1_000_000
choose = Share.choose
OPEN = Kind("open", JobPolicy())


class Queue:
    """Lanes, and jobs that come to them."""

    def __init__(self, **policy: object) -> None:
        self.lanes = Lanes(QueuePolicy(**policy))  # type: ignore[arg-type]
        self.kinds = {"open": Kind("open", JobPolicy())}
        self.number = 0
        self.now_ms = NOW

    def kind(self, name: str, **policy: object) -> None:
        self.kinds[name] = Kind(name, JobPolicy(**policy))  # type: ignore[arg-type]

    def add(
        self, tenant: str = "a", priority: int = 0, kind: str = "open", count: int = 1, ready_ms: int | None = None
    ) -> None:
        for _ in range(count):
            request = JobRequest(str(self.number), kind, tenant=tenant, priority=priority)
            job = Job(self.kinds[kind], request, self.number, self.number)
            job.ready_ms = self.now_ms if ready_ms is None else ready_ms
            self.number += 1
            self.lanes.add(job)

    def take(self, room: int, at_once: int = 7, end: bool = True) -> list[Job]:
        """Some at a time, each ended before the next ones are taken."""
        taken: list[Job] = []
        while len(taken) < room:
            some = self.lanes.take(min(at_once, room - len(taken)), self.now_ms)
            if not some:
                break
            for job in some:
                job.state = JobState.RUNNING
                if end:
                    job.kind.running -= 1
            taken += some
        return taken


def counted(jobs: list[Job], what: Callable[[Job], object]) -> dict[object, int]:
    return dict(Counter(what(job) for job in jobs))


def of_lane(job: Job) -> int:
    return lane_of(job.priority)


# -- timers


@example([*((n, "set", 1) for n in range(3)), (1, "renumber", 1), (1, "set", 1), (0, "due", 1)])
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(("set", "clear", "renumber", "due")), st.integers(1, 30)),
        max_size=80,
    )
)
def test_timers_agree_with_a_dictionary(steps: list[tuple[int, str, int]]) -> None:
    timers: Timers[Job] = Timers()
    jobs = [Job(OPEN, JobRequest(str(n), "open"), n, n) for n in range(6)]
    known: dict[int, int] = {}
    for number, what, at_ms in steps:
        if what == "set":
            timers.set(jobs[number], at_ms)
            known[number] = at_ms
        elif what != "due":
            timers.clear(jobs[number])
            known.pop(number, None)
            if what == "renumber":  # behind all others, as one that runs now does
                jobs[number].number = max(job.number for job in jobs) + 1
        else:
            wanted = sorted((at, jobs[each].number, each) for each, at in known.items() if at <= at_ms)
            assert timers.due(at_ms) == [jobs[each] for _, _, each in wanted]
            for _, _, each in wanted:
                del known[each]
        assert timers.next_ms() == min(known.values(), default=None)
        assert len(timers) == len(known)


def test_timers_that_are_cleared_take_no_memory() -> None:
    timers: Timers[Job] = Timers()
    jobs = [Job(OPEN, JobRequest(str(n), "open"), n, n) for n in range(10_000)]
    for job in jobs:
        timers.set(job, 50)
    for job in jobs[1:]:
        timers.clear(job)
    assert len(timers._heap) < 3_000
    assert timers.due(50) == jobs[:1]


# -- lanes


def test_lanes_share_by_weight_and_none_starves() -> None:
    queue = Queue()
    for priority in (-1, 0, 10):
        queue.add(priority=priority, count=1_000)
    assert counted(queue.take(210), of_lane) == {HIGH: 160, NORMAL: 40, LOW: 10}


def test_an_empty_lane_leaves_its_part_to_the_others_and_saves_nothing_up() -> None:
    queue = Queue()
    queue.add(priority=0, count=500)
    queue.add(priority=-1, count=500)
    assert counted(queue.take(100), of_lane) == {NORMAL: 80, LOW: 20}
    queue.add(priority=10, count=500)
    taken = queue.take(42)
    assert counted(taken, of_lane) == {HIGH: 32, NORMAL: 8, LOW: 2}
    assert of_lane(taken[0]) == HIGH


def test_a_lane_that_waited_long_has_the_weight_of_the_one_above() -> None:
    queue = Queue()
    for priority in (-1, 0, 10):
        queue.add(priority=priority, count=1_000)
    queue.now_ms += 60_001
    assert counted(queue.take(360), of_lane) == {HIGH: 160, NORMAL: 160, LOW: 40}


def test_an_old_backlog_does_not_bury_what_is_urgent() -> None:
    queue = Queue()
    queue.add(priority=-1, count=10_000)
    queue.now_ms += 3_600_000
    queue.add(priority=10)
    assert of_lane(queue.take(1)[0]) == HIGH


@pytest.mark.parametrize("priority", [10, 0, -1])
def test_a_job_that_left_its_lane_is_not_kept_for_its_age(priority: int) -> None:
    queue = Queue()
    queue.add(priority=priority, ready_ms=NOW - 1)
    queue.kind("full", concurrency=1)
    queue.kinds["full"].running = 1
    queue.add(priority=priority, kind="full", ready_ms=NOW)
    for _ in range(5):
        queue.add(priority=priority, count=1_000)
        queue.take(1_000)
    lane = queue.lanes.lanes[lane_of(priority)]
    assert len(lane._ages) <= 2 * lane.count + DEAD_AGES
    assert next(job.id for job in lane._ages if job.laned) == "1", "the oldest one is the same"


def test_a_job_that_comes_back_again_and_again_is_kept_once_for_its_age() -> None:
    """As one does that is let go."""
    queue = Queue()
    queue.kind("one", concurrency=1)
    queue.add(count=2_000)
    queue.add(priority=9, kind="one")
    for _ in range(2_900):
        (back,) = queue.take(1)
        queue.lanes.add(back)
    back.kind.running = 1
    assert len(queue.take(2_000, end=False)) == 2_000
    assert len(queue.lanes.lanes[NORMAL]._ages) <= 2 + DEAD_AGES


# -- tenants


def test_one_of_a_hundred_thousand_delays_another_by_its_share_only() -> None:
    queue = Queue()
    queue.add("greedy", count=100_000)
    queue.add("modest", count=3)
    taken = queue.take(7, at_once=7)
    assert [job.tenant for job in taken].count("modest") == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(1, 9))
def test_tenants_get_equal_shares_while_they_have_jobs(sizes: list[int], at_once: int) -> None:
    queue = Queue()
    for tenant, size in enumerate(sizes):
        queue.add(str(tenant), count=size)
    taken = [job.tenant for job in queue.take(sum(sizes), at_once)]
    assert len(taken) == sum(sizes)
    for upto in range(len(taken)):
        counts = Counter(taken[:upto])
        still = [str(tenant) for tenant, size in enumerate(sizes) if counts[str(tenant)] < size]
        if len(still) > 1:
            assert max(counts[t] for t in still) - min(counts[t] for t in still) <= 1


def test_a_share_counts_what_jobs_cost() -> None:
    queue = Queue()
    queue.kind("heavy", cost=5)
    queue.add("a", kind="heavy", count=100)
    queue.add("b", count=500)
    assert counted(queue.take(120), lambda job: job.tenant) == {"a": 20, "b": 100}


class RoundByRound(Lane):
    """A lane that goes through every round, as it is defined."""

    __slots__ = ()

    def _skip(self, rounds: int) -> None:
        pass


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from(("1", "2", "7", "30", "limited"))),
            st.integers(1, 6),
        ),
        max_size=50,
    ),
)
def test_rounds_in_which_nobody_has_enough_change_nothing_when_they_are_skipped(
    quantum: int, steps: list[tuple[str, int, str] | int]
) -> None:
    policy = QueuePolicy(quantum=quantum)
    costs = {"1": 1, "2": 2, "7": 7, "30": 30, "limited": 11}
    kinds = [{name: Kind(name, JobPolicy(cost=cost)) for name, cost in costs.items()} for _ in range(2)]
    lanes = [Lane(NORMAL, policy, {}), RoundByRound(NORMAL, policy, {})]
    for number, step in enumerate([*steps, 60]):
        seen = []
        for lane, of_lane in zip(lanes, kinds, strict=True):
            limited = of_lane["limited"]
            limited.limit = 2
            if isinstance(step, tuple):
                tenant, priority, kind = step
                request = JobRequest(str(number), kind, tenant=tenant, priority=priority)
                lane.add(Job(of_lane[kind], request, number, number))
                continue
            limited.running = number % 3  # at times there is no room
            lane.wake(limited)
            found = [lane.pick(NOW) for _ in range(step)]
            seen.append(([job and job.id for job in found], [(share.deficit, share.turns) for share in lane.ring]))
        assert seen[:1] == seen[1:]


def test_a_dear_job_of_many_tenants_does_not_take_a_look_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    queue.kind("dear", cost=1_000)
    for tenant in range(50):
        queue.add(str(tenant), kind="dear")
    looks = []
    monkeypatch.setattr(Share, "choose", lambda share, *given: looks.append(share) or choose(share, *given))
    assert [job.tenant for job in queue.take(1)] == ["0"]
    assert len(looks) <= 2 * 50 + 1


def test_a_tenant_that_comes_back_has_saved_nothing_up() -> None:
    queue = Queue()
    queue.add("a", count=1)
    queue.take(1)
    queue.add("b", count=100)
    queue.take(50)
    queue.add("a", count=100)
    assert counted(queue.take(20), lambda job: job.tenant) == {"a": 10, "b": 10}


# -- inside of a tenant


def test_the_higher_priority_first_and_then_who_came_first() -> None:
    queue = Queue()
    for priority in (0, 9, 3, 9, 0):
        queue.add(priority=priority)
    assert [job.id for job in queue.take(5)] == ["1", "3", "2", "0", "4"]


def test_a_low_number_does_not_starve_behind_a_stream_of_high_ones() -> None:
    queue = Queue()
    queue.add(priority=0)
    queue.now_ms += 60_001
    first = []
    for _ in range(4):
        queue.add(priority=9, count=2)
        first += queue.take(1)
    assert "0" in [job.id for job in first]


def test_a_cancelled_one_is_passed_over() -> None:
    queue = Queue()
    queue.add(priority=5, count=2)
    queue.add(count=3)
    queue.add("b", count=1)
    waiting = [line for lane in queue.lanes.lanes for share in lane._shares.values() for line in share.lines.values()]
    jobs = {job.id: job for line in waiting for each in line._by_priority.values() for job in each}
    for gone in ("0", "1", "3", "5"):
        queue.lanes.remove(jobs[gone])
    assert len(queue.lanes) == 2
    assert [job.id for job in queue.take(9)] == ["2", "4"]
    assert len(queue.lanes) == 0


# -- limits of types


def test_a_type_at_its_limit_blocks_nobody_else() -> None:
    queue = Queue()
    queue.kind("two", concurrency=2)
    queue.add(kind="two", count=5)
    queue.add(kind="open", count=3)
    queue.add("b", kind="two", count=2)
    taken = queue.take(20, at_once=20, end=False)
    assert counted(taken, lambda job: job.kind.name) == {"two": 2, "open": 3}
    taken[0].kind.running -= 1
    assert [job.kind.name for job in queue.take(20, end=False)] == ["two"]


def test_places_of_a_limited_type_go_round_the_tenants() -> None:
    queue = Queue()
    queue.kind("one", concurrency=1)
    for tenant in "abc":
        queue.add(tenant, kind="one", count=30)
    order = [queue.take(1)[0].tenant for _ in range(60)]
    assert Counter(order) == {"a": 20, "b": 20, "c": 20}
    assert all(len(set(order[at : at + 3])) == 3 for at in range(0, 60, 3))


def test_a_place_that_another_lane_took_costs_no_turn() -> None:
    queue = Queue()
    queue.kind("one", concurrency=1)
    for tenant in "abc":
        queue.add(tenant, kind="one", count=30)
    queue.add("h", priority=10, kind="one", count=300)
    order = "".join(job.tenant for job in queue.take(120, at_once=5) if job.tenant != "h")
    assert len(order) >= 20
    assert order in "abc" * 60


def test_a_second_type_of_a_tenant_that_waits_is_waited_for_too() -> None:
    queue = Queue()
    queue.kind("one", concurrency=1)
    queue.kind("other", concurrency=1)
    queue.add("x", kind="other")
    (other,) = queue.take(1, end=False)
    queue.add(kind="one", count=2)
    assert [job.kind.name for job in queue.take(5, at_once=5, end=False)] == ["one"]
    assert queue.take(5, end=False) == []
    queue.add(kind="other")
    assert queue.take(5, end=False) == []
    other.kind.running -= 1
    assert [job.kind.name for job in queue.take(5, end=False)] == ["other"]


def test_lanes_share_the_places_of_a_limited_type() -> None:
    queue = Queue()
    queue.kind("one", concurrency=1)
    for priority in (-1, 0, 10):
        queue.add(priority=priority, kind="one", count=300)
    assert counted(queue.take(210, at_once=5), of_lane) == {HIGH: 160, NORMAL: 40, LOW: 10}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from((-1, 0, 10)), st.sampled_from(("open", "one", "three"))),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
)
def test_nobody_is_forgotten_and_limits_hold(jobs: list[tuple[str, int, str]], ends: list[int]) -> None:
    queue = Queue()
    queue.kind("one", concurrency=1)
    queue.kind("three", concurrency=3)
    for tenant, priority, kind in jobs:
        queue.add(tenant, priority, kind)
    running: list[Job] = []
    seen: list[str] = []
    for count in [*ends, *([len(jobs)] * (len(jobs) + 1))]:
        running += (some := queue.take(3, at_once=3, end=False))
        seen += [job.id for job in some]
        for name, most in (("one", 1), ("three", 3)):
            assert sum(job.kind.name == name for job in running) == queue.kinds[name].running <= most
        for job in running[:count]:
            job.kind.running -= 1
        del running[:count]
    assert sorted(seen) == sorted(str(n) for n in range(len(jobs)))


# -- keys


def test_a_key_has_one_head_and_the_rest_in_order() -> None:
    keys = KeyOrder()
    jobs = [Job(OPEN, JobRequest(str(n), "open", key="k"), n, n) for n in range(4)]
    assert [keys.enter("k", job) for job in jobs] == [True, False, False, False]
    assert keys.enter("k", jobs[0]), "a retry that comes due is the head still"
    jobs[1].state = JobState.CANCELLED
    assert keys.leave("k", jobs[2]) is None, "it is not the head"
    assert keys.leave("k", jobs[0]) is jobs[2]
    assert keys.unwritten("k") == [jobs[2], jobs[3]]
    jobs[2].written = True
    assert keys.unwritten("k") == [jobs[3]]
    assert keys.leave("k", jobs[2]) is jobs[3]
    assert keys.leave("k", jobs[3]) is None
    assert keys.enter("k", jobs[1])
