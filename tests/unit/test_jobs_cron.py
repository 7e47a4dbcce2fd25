"""Ticks of cron expressions: around changes of the clock, whoever asks from wherever; and what is missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.jobs.ticks import Ticking
from pipeline.model.cron import Cron, Misfire
from pipeline.model.instants import epoch_ms_of
from pipeline.model.job_policies import QueuePolicy
from pipeline.model.jobs import JobRequest, Schedule, ScheduleRecord

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOW = 1_767_225_600_000  # 2026-01-01T00:00Z
ZURICH = "Europe/Zurich"
SPRING, AUTUMN = (epoch_ms_of(datetime(2026, *day, tzinfo=UTC)) for day in ((3, 29, 1), (10, 25, 1)))
"""When the clocks there change: at 02:00 to 03:00, at 03:00 to 02:00."""


def local(ms: int, zone: str = ZURICH) -> str:
    return datetime.fromtimestamp(ms / 1000, ZoneInfo(zone)).strftime("%d %H:%M%z")


def ticks(expression: str, since_ms: int, until_ms: int, zone: str = ZURICH) -> list[str]:
    return [local(ms, zone) for ms in Cron(expression, zone).between(since_ms, until_ms, 1_000)]


def test_an_hour_that_is_not_there_runs_right_after_the_gap() -> None:
    assert ticks("30 2 * * *", SPRING - DAY, SPRING + DAY) == ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]


def test_an_hour_that_is_there_twice_runs_once() -> None:
    assert ticks("30 2 * * *", AUTUMN - 26 * HOUR, AUTUMN + 26 * HOUR) == [
        "24 02:30+0200",
        "25 02:30+0200",
        "26 02:30+0100",
    ]


def test_what_goes_by_real_time_follows_it() -> None:
    assert ticks("*/30 * * * *", SPRING - HOUR, SPRING + HOUR) == [
        *("29 01:30+0100", "29 03:00+0200", "29 03:30+0200", "29 04:00+0200"),
    ]
    assert len(ticks("*/30 * * * *", AUTUMN - 2 * HOUR, AUTUMN + 2 * HOUR)) == 8
    assert len(Cron("*/20 * * * * *", ZURICH).between(AUTUMN - MINUTE, AUTUMN + MINUTE, 100)) == 6


def test_days_months_and_names() -> None:
    assert ticks("0 9 * * MON-FRI", NOW, NOW + 5 * DAY, "UTC") == ["01 09:00+0000", "02 09:00+0000", "05 09:00+0000"]
    assert ticks("0 0 L * *", NOW, NOW + 60 * DAY, "UTC") == ["31 00:00+0000", "28 00:00+0000"]
    leap = Cron("0 0 29 2 *").next_after(NOW)
    assert leap == epoch_ms_of(datetime(2028, 2, 29))


@pytest.mark.parametrize("expression", ["30 2 * * *", "0,30 1-3 * * *", "15 2,3 * * *"])
@pytest.mark.parametrize(
    ("around_ms", "zone"), [(SPRING, ZURICH), (AUTUMN, ZURICH), (AUTUMN + 7 * DAY + 5 * HOUR, "America/New_York")]
)
def test_no_tick_lies_before_the_question(expression: str, around_ms: int, zone: str) -> None:
    cron = Cron(expression, zone)
    for at_ms in range(around_ms - 2 * HOUR, around_ms + 3 * HOUR, 5 * MINUTE):
        found = cron.between(at_ms, at_ms + 2 * DAY, 20)
        assert found[0] > at_ms
        assert found == sorted(set(found))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 1-3 * * *", "15 */2 * * *", "*/10 * * * * *")),
    st.sampled_from((ZURICH, "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu")),
    st.sampled_from((SPRING, AUTUMN, NOW, epoch_ms_of(datetime(2026, 3, 8, 7)), epoch_ms_of(datetime(2026, 4, 4, 15)))),
    st.integers(-3 * HOUR, 3 * HOUR),
)
def test_ticks_are_the_same_from_wherever_they_are_asked(
    expression: str, zone: str, around_ms: int, off_ms: int
) -> None:
    """Else an owner that begins at another moment fires other ticks."""
    cron = Cron(expression, zone)
    all_of_them = cron.between(around_ms - 4 * HOUR, around_ms + 4 * HOUR, 10_000)
    assert all_of_them == sorted(set(all_of_them))
    at_ms = around_ms + off_ms
    later = [ms for ms in all_of_them if ms > at_ms]
    if later:
        assert cron.next_after(at_ms) == later[0]
    earlier = [ms for ms in all_of_them if ms <= at_ms]
    assert cron.last_between(around_ms - 4 * HOUR, at_ms) == (earlier[-1] if earlier else None)


@given(st.integers(0, 59), st.integers(0, 23), st.integers(0, 364))
def test_a_time_of_day_against_the_calendar(minute: int, hour: int, day: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    found = Cron(f"{minute} {hour} * * *").between(epoch_ms_of(start) - 1, epoch_ms_of(start) + 3 * DAY - 1, 9)
    assert found == [epoch_ms_of(start + timedelta(days=n, hours=hour, minutes=minute)) for n in range(3)]


# -- what is missed


def fired(
    misfire: Misfire, next_ms: int, now_ms: int, grace_ms: int = 90_000, most: int = 1_000
) -> tuple[list[int], int]:
    ticking = Ticking(ScheduleRecord(Schedule("s", "* * * * *", JobRequest("", "t"), misfire=misfire), next_ms), 0)
    return ticking.fire(now_ms, now_ms, QueuePolicy(misfire_ms=grace_ms, ticks=most)), ticking.next_ms


@pytest.mark.parametrize("misfire", Misfire)
def test_in_time_means_every_tick_whatever_the_policy(misfire: Misfire) -> None:
    assert fired(misfire, NOW - MINUTE, NOW + 5) == ([NOW - MINUTE, NOW], NOW + MINUTE)


def test_missed_ticks() -> None:
    first = NOW - 10 * MINUTE
    in_time = [NOW - MINUTE, NOW]
    assert fired(Misfire.SKIP, first, NOW) == (in_time, NOW + MINUTE)
    assert fired(Misfire.ONCE, first, NOW) == ([NOW - 2 * MINUTE, *in_time], NOW + MINUTE)
    assert fired(Misfire.ALL, first, NOW) == ([first + n * MINUTE for n in range(11)], NOW + MINUTE)


def test_all_of_them_come_some_at_once() -> None:
    ticks, next_ms = fired(Misfire.ALL, NOW - 10 * MINUTE, NOW, most=4)
    assert ticks == [NOW - n * MINUTE for n in (10, 9, 8, 7)]
    assert next_ms == NOW - 6 * MINUTE


def test_nothing_in_time_and_nothing_missed_that_counts() -> None:
    assert fired(Misfire.SKIP, NOW - 10 * MINUTE, NOW + 30_000, grace_ms=0) == ([], NOW + MINUTE)
    assert fired(Misfire.ONCE, NOW - 10 * MINUTE, NOW + 30_000, grace_ms=0) == ([NOW], NOW + MINUTE)


def test_a_year_of_missed_seconds_is_no_work() -> None:
    ticking = Ticking(
        ScheduleRecord(Schedule("s", "* * * * * *", JobRequest("", "t"), misfire=Misfire.ONCE), NOW - 365 * DAY), 0
    )
    assert ticking.fire(NOW, NOW, QueuePolicy(misfire_ms=500)) == [NOW - 1_000, NOW]
