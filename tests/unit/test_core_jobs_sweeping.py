"""What still counts of a store is written once more now and then, so that a new owner need not read from the beginning."""

from __future__ import annotations

import pytest

from pipeline.core.jobs.entries import Entry
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.sweeping import Sweep
from pipeline.model.job_policies import JobPolicy, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import PutSchedule, Schedule, ScheduleRecord
from tests.unit.test_core_jobs_board import MINUTE, NOW, Bench


class Soon(Sweep):
    """`every` and `times` as small as they can be."""

    __slots__ = ()
    every, times = 0, 0


@pytest.fixture
def bench() -> Bench:
    return Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(1, 1, MINUTE)))


def written(bench: Bench) -> list[bytes]:
    return [each.key for each in bench.store() if isinstance(each, Entry)]


def stored(bench: Bench, job_id: str, **more: object) -> None:
    """A job that waits, with its entry."""
    bench.ask(job_id, due_ms=bench.now_ms + MINUTE, **more)
    bench.store()


def test_it_begins_when_enough_was_written_and_so_many_times_the_jobs() -> None:
    class Some(Sweep):
        __slots__ = ()
        every, times = 10, 4

    bench = Bench()
    sweep = Some(bench.board, 100)
    stored(bench, "a")
    assert sweep.step(114) is None
    assert written(bench) == []
    assert sweep.step(115) == 115
    assert written(bench) == [b"j/a"]
    sweep.floor = 115
    assert sweep.step(129) is None


def test_entries_are_as_they_were_and_say_so(bench: Bench) -> None:
    stored(bench, "a")
    before = dict(bench.log)
    assert Soon(bench.board, 0).step(1) == 1
    (entry,) = bench.store()
    assert isinstance(entry, Entry)
    assert entry.again
    assert before == {entry.key: entry.value}
    assert entry.settles == -1
    assert bench.board.jobs["a"].packed is entry.value  # type: ignore[union-attr]


def test_all_kinds_of_entries_are_swept(bench: Bench) -> None:
    stored(bench, "a", dedup_id="d", dedup_window_ms=MINUTE)
    bench.ask("b", dedup_id="d", dedup_window_ms=MINUTE)
    bench.store()
    bench.command(PutSchedule(Schedule("s", "* * * * *", bench.request(""))))
    held = ScheduleRecord(Schedule("from-the-future", "?", bench.request("")), 0, 0)
    bench.board.schedules.held["from-the-future"] = held
    written(bench)
    assert Soon(bench.board, 0).step(9) == 9
    assert sorted(written(bench)) == [b"d/t/d", b"j/a", b"j/b", b"s/from-the-future", b"s/s"]


def test_some_at_a_time_and_only_what_was_not_written_since_or_went(bench: Bench) -> None:
    class Slow(Soon):
        __slots__ = ()
        at_once = 1

    for name in "abcd":
        stored(bench, name)
    bench.ask("e")
    sweep = Slow(bench.board, 0)
    assert sweep.step(4) is None
    assert written(bench) == [b"j/a"]
    bench.pass_ms(MINUTE)
    jobs = {job.id: job for job in bench.take()}
    for name in ("b", "c"):
        bench.end(jobs[name])  # b is forgotten, as one is kept; c is written
    bench.board.committed = bench.offset
    bench.pass_ms(0)
    assert "b" not in bench.board.jobs
    written(bench)
    found = [sweep.step(1_000) for _ in range(5)]
    assert found == [None, None, None, None, 4], "where it began"
    assert written(bench) == [b"j/d"], "b is gone, c was written, e has no entry yet"
    assert jobs["d"].state is JobState.RUNNING


def test_nothing_of_a_running_job_gets_lost(bench: Bench) -> None:
    stored(bench, "a")
    bench.pass_ms(MINUTE)
    (job,) = bench.take()
    assert Soon(bench.board, 0).step(1) == 1
    assert bench.states() == [("a", JobState.RUNNING)]
    assert job.request is not None
    bench.restart()
    (again,) = bench.board.jobs.values()
    assert isinstance(again, Job)
    assert again.stalls == 1


def test_who_waits_for_an_entry_does_not_wait_for_the_one_that_is_written_again(bench: Bench) -> None:
    """Acknowledged later, it would open a gate that is another one by then."""
    bench.board.careful = True
    bench.ask("a")
    assert bench.take() == []
    assert Soon(bench.board, 0).step(1) == 1
    first, again = (each for each in bench.effects() if isinstance(each, Entry))
    bench.board.stored(again)
    assert bench.take() == []
    bench.board.stored(first)
    assert bench.ids() == ["a"]


def test_the_next_sweep_writes_all_of_it_again(bench: Bench) -> None:
    stored(bench, "a")
    sweep = Soon(bench.board, 0)
    for end in (1, 2, 3):
        assert sweep.step(end) == end
        sweep.floor = end
        assert written(bench) == [b"j/a"]
    assert bench.board.jobs["a"].next_ms == NOW + MINUTE  # type: ignore[union-attr]
