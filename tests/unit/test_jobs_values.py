"""Jobs as values: states and moves, ids that carry their time, and bad input refused in one sentence that names the field."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.errors import ConfigurationError
from pipeline.model.job_ids import RANDOM_BYTES, absent, job_id, made_ms, tick_id
from pipeline.model.job_policies import (
    DAY_MS,
    HIGH,
    LOW,
    NORMAL,
    Exponential,
    Fixed,
    JobOptions,
    JobPolicy,
    QueuePolicy,
    RetentionPolicy,
    check_job,
    check_queue,
    check_schedule,
    lane_of,
    request_of,
)
from pipeline.model.job_states import FIRST, GIVEN_UP, MOVES, SUCCEEDED, TERMINAL, TIMED, JobState
from pipeline.model.jobs import JobRequest, Schedule
from pipeline.model.policies import Backoff

NOW = 1_767_225_600_000


# -- states


def test_every_state_can_be_reached_and_has_an_end() -> None:
    assert set(MOVES) == set(JobState)
    reached = set(FIRST)
    for _ in JobState:
        reached |= {after for state in reached for after in MOVES[state]}
    assert reached == set(JobState)
    for state in JobState:
        ends, seen = {state}, {state}
        while ends:
            ends = {after for each in ends for after in MOVES[each]} - seen
            seen |= ends
        assert seen & TERMINAL, state


def test_only_an_operator_leaves_a_terminal_state() -> None:
    assert TERMINAL == SUCCEEDED | GIVEN_UP
    for state in TERMINAL:
        assert MOVES[state] == ({JobState.QUEUED} if state in GIVEN_UP else frozenset())
    assert not TERMINAL & TIMED


def test_lanes() -> None:
    assert [lane_of(priority) for priority in (-1, 0, 9, 10, 1_000)] == [LOW, NORMAL, NORMAL, HIGH, HIGH]


# -- ids


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_an_id_carries_its_time_and_sorts_by_it(now_ms: int, random: bytes) -> None:
    made = job_id(now_ms, random)
    assert made_ms(made) == now_ms
    assert made[14] == "7"
    assert made[19] in "89ab"
    if now_ms:
        assert job_id(now_ms - 1, b"\xff" * RANDOM_BYTES) < made


def test_ids_differ_by_their_random_part() -> None:
    drawn = {job_id(NOW, bit.to_bytes(RANDOM_BYTES)) for bit in (1 << n for n in range(74))}
    assert len(drawn) == 74
    with pytest.raises(ValueError, match="random bytes"):
        job_id(NOW, b"short")


def test_a_forgotten_job_is_told_from_one_that_never_was() -> None:
    old, young = job_id(NOW - 8 * DAY_MS, bytes(10)), job_id(NOW - 1_000, bytes(10))
    assert absent(old, NOW, 7 * DAY_MS) == "expired"
    assert absent(young, NOW, 7 * DAY_MS) == "unknown"
    assert absent(tick_id("nightly@home", NOW - 8 * DAY_MS), NOW, 7 * DAY_MS) == "expired"
    for text in ("", "ticket-7", "@", old.replace("-", ""), old.upper().replace("7", "8", 3), "a@" + "9" * 16):
        assert absent(text, NOW, 7 * DAY_MS) == "unknown", text


# -- what is asked for


def asked(**options: object) -> JobRequest:
    return request_of("classify", "id", b"{}", JobOptions(**options), JobPolicy(), NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"delay": "-5s"}, "delay='-5s'"),
        ({"delay": -5}, "delay=-5 is negative"),
        ({"delay": "soon"}, "delay='soon'"),
        ({"delay": "5s", "run_at": NOW}, "delay and run_at"),
        ({"run_at": -1}, "run_at"),
        ({"run_at": NOW // 1_000 + 60}, f"run_at={NOW // 1_000 + 60} is in milliseconds since the epoch"),
        ({"run_at": 0}, "where these are seconds, multiply them by 1000"),
        ({"run_at": 10**11 - 1}, "run_at=99999999999 is in milliseconds"),
        ({"run_at": NOW / 1_000}, "run_at (milliseconds since the epoch)="),
        ({"run_at": True}, "run_at (milliseconds since the epoch)=True"),
        ({"run_at": "tomorrow"}, "run_at"),
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": -1}, "attempts=-1"),
        ({"attempts": True}, "attempts=True"),
        ({"attempts": 2.5}, "attempts=2.5"),
        ({"dedup_window": "1h"}, "dedup_window='1h' without dedup_id"),
        ({"dedup_id": "a", "dedup_window": 0}, "dedup_window=0"),
        ({"dedup_id": ""}, "dedup_id=''"),
        ({"dedup_id": "a\0b"}, "dedup_id="),
        ({"key": ""}, "key=''"),
        ({"key": 7}, "key=7"),
        ({"key": "k" * 501}, "key="),
        ({"tenant": b"acme"}, "tenant="),
        ({"workflow_id": ""}, "workflow_id=''"),
        ({"priority": "high"}, "priority='high'"),
        ({"priority": 10**9}, "priority="),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "-1s"}, "timeout="),
        ({"expires": 0}, "expires=0"),
        ({"tags": "urgent"}, "tags="),
        ({"tags": ("a", "")}, "tags=''"),
        ({"tags": ("a",) * 51}, "tags="),
        ({"backoff": Backoff(10, 0.5)}, "backoff="),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        asked(**options)
    assert named in str(refused.value)


def test_what_is_asked_for() -> None:
    plain = asked()
    assert (plain.due_ms, plain.expires_ms, plain.attempts, plain.dedup_window_ms, plain.created_ms) == (
        0,
        0,
        0,
        0,
        NOW,
    )
    assert asked(delay="5m").due_ms == NOW + 300_000
    assert asked(delay=0).due_ms == 0
    assert asked(run_at=NOW + 1).due_ms == NOW + 1
    assert asked(run_at=NOW - 1).due_ms == 0
    assert asked(run_at=10**11).due_ms == 0
    assert asked(expires="10s").expires_ms == NOW + 10_000
    assert asked(expires="10s", delay="1h").expires_ms == NOW + 3_610_000
    assert asked(dedup_id="a").dedup_window_ms == DAY_MS
    assert asked(dedup_id="a", dedup_window="1h").dedup_window_ms == 3_600_000
    assert request_of("t", "id", b"", JobOptions(), JobPolicy(priority=12), NOW).priority == 12
    assert request_of("t", "id", b"", JobOptions(priority=0), JobPolicy(priority=12), NOW).priority == 0
    with pytest.raises(ConfigurationError, match="type=''"):
        request_of("", "id", b"", JobOptions(), JobPolicy(), NOW)


def test_backoff() -> None:
    assert [Exponential("1s", max_delay="10s").before_retry_ms(n) for n in range(1, 7)] == [
        1e3,
        2e3,
        4e3,
        8e3,
        1e4,
        1e4,
    ]
    assert [Fixed("3s").before_retry_ms(n) for n in (1, 2, 50)] == [3_000] * 3
    for wrong in (lambda: Exponential("1s", factor=0.5), lambda: Exponential("1m", max_delay="1s"), lambda: Fixed(-1)):
        with pytest.raises(ConfigurationError):
            wrong()
    with pytest.raises(ConfigurationError, match="factor"):
        Exponential("1s", factor=float("inf"))


# -- policies


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"jitter": 1.5}, "jitter=1.5"),
        ({"timeout_ms": 0}, "timeout_ms=0"),
        ({"concurrency": -1}, "concurrency=-1"),
        ({"cost": 0}, "cost=0"),
        ({"max_stalled_count": -1}, "max_stalled_count=-1"),
        ({"dedup_window_ms": 0}, "dedup_window_ms=0"),
        ({"retention": RetentionPolicy(completed=-1)}, "retention.completed=-1"),
        ({"retention": RetentionPolicy(failed=-1)}, "retention.failed=-1"),
        ({"retention": RetentionPolicy(age_ms=-1)}, "retention.age_ms=-1"),
        ({"backoff": Backoff(-1)}, "backoff="),
        ({"priority": 0.5}, "priority=0.5"),
    ],
    ids=str,
)
def test_bad_policies_of_types_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_job(replace(JobPolicy(), **change))  # type: ignore[arg-type]
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": (16, 4)}, "weights=(16, 4)"),
        ({"weights": (16, 4, 0)}, "weights=0"),
        ({"weights": (1, 4, 16)}, "weights=(1, 4, 16)"),
        ({"ageing_ms": -1}, "ageing_ms=-1"),
        ({"oldest_every": 0}, "oldest_every=0"),
        ({"quantum": 0}, "quantum=0"),
        ({"misfire_ms": -1}, "misfire_ms=-1"),
        ({"ticks": 0}, "ticks=0"),
        ({"due": 0}, "due=0"),
    ],
    ids=str,
)
def test_bad_policies_of_queues_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_queue(replace(QueuePolicy(), **change))  # type: ignore[arg-type]
    assert named in str(refused.value)


def test_the_defaults_are_allowed() -> None:
    assert check_job(JobPolicy()).retention == RetentionPolicy(100, 500, 7 * DAY_MS)
    assert check_queue(QueuePolicy()).weights == (16, 4, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": ""}, "name=''"),
        ({"cron": "every day"}, "cron='every day'"),
        ({"cron": "0 25 * * *"}, "Bad hour"),
        ({"cron": "0 0 30 2 *"}, "cron="),
        ({"cron": "* * * * MON#1/2"}, "cron="),
        ({"cron": "1" * 300}, "cron="),
        ({"cron": 5}, "cron=5"),
        ({"zone": "Mars/Olympus"}, "zone='Mars/Olympus'"),
        ({"zone": "../etc"}, "zone='../etc'"),
        ({"zone": ""}, "zone=''"),
        ({"request": JobRequest("", "t", due_ms=5)}, "'nightly' may not have"),
        ({"request": JobRequest("", "t", dedup_id="d")}, "'nightly' may not have"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused(change: dict[str, object], named: str) -> None:
    schedule = Schedule("nightly", "0 3 * * *", JobRequest("", "t"), "Europe/Zurich")
    assert check_schedule(schedule) is schedule
    with pytest.raises(ConfigurationError) as refused:
        check_schedule(replace(schedule, **change))  # type: ignore[arg-type]
    assert named in str(refused.value)
