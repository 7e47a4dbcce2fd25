"""Single steps of a board: what is written when, what settles, what a crash, a cancel or a late ending changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.core.jobs import commands, delivering, retention
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import DeliveryWritten, Effect, Entry, Interrupt, Letter, Settle
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.ledger import QUEUED_SYNCS
from pipeline.core.jobs.repairing import write_again
from pipeline.core.jobs.restoring import Restoring
from pipeline.core.jobs.retrying import draw
from pipeline.model import history
from pipeline.model.cron import Misfire
from pipeline.model.job_ids import tick_id
from pipeline.model.job_policies import JobPolicy, QueuePolicy, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.job_webhooks import DELIVERY
from pipeline.model.jobs import (
    CancelJob,
    Completed,
    DedupWindow,
    DropSchedule,
    JobCommand,
    JobDuplicate,
    JobRecord,
    JobRequest,
    PauseSchedule,
    PutSchedule,
    RetryJob,
    RunJobNow,
    RunScheduleNow,
    Schedule,
    ScheduleRecord,
)
from pipeline.model.outcome import Cancelled, Failure, FailureKind
from pipeline.model.policies import Backoff
from pipeline.model.store_keys import dedup_key, dedup_of
from pipeline.replay.fetching import FETCH
from pipeline.replay.options import WINDOW
from tests.property.board_world import Pickled

NOW = 1_767_225_600_000
MINUTE = 60_000
LATER = Failure(FailureKind.RETRYABLE, "RateLimit", "RateLimitError", "later")
NEVER = Failure(FailureKind.TERMINAL, "BadArguments", "ValueError", "no")
S = JobState


class Bench:
    """A board with its store: everything that it wants written is acknowledged at `store()`."""

    def __init__(self, **policies: JobPolicy) -> None:
        self.policies = policies or {"t": JobPolicy(attempts=3, backoff=Backoff(1_000), jitter=0.0)}
        self.log: list[tuple[bytes, bytes | None]] = []
        self.offset = 0
        self.now_ms = NOW
        self.board = self._new()

    def _new(self) -> Board:
        return Board(QueuePolicy(misfire_ms=10_000), self.policies, Pickled())

    def restart(self, committed: int = 0) -> list[Effect]:
        """With what was stored; what the new board wants at once."""
        self.board = self._new()
        self.board.committed = committed
        restoring = Restoring(self.board)
        restoring.entries(self.log)
        restoring.finish(self.now_ms)
        return self.effects()

    def request(self, job_id: str, **more: object) -> JobRequest:
        return JobRequest(job_id, "t", created_ms=self.now_ms)._replace(**more)

    def admit(self, *requests: JobRequest) -> None:
        for request in requests:
            self.board.admit([(self.offset, request)], self.now_ms)
            self.offset += 1

    def ask(self, job_id: str, **more: object) -> None:
        self.admit(self.request(job_id, **more))

    def command(self, command: JobCommand) -> bool:
        self.offset += 1
        return commands.apply(self.board, command, self.offset - 1, self.now_ms)

    def effects(self) -> list[Effect]:
        found = self.board.effects()
        self.log += [(each.key, each.value) for each in found if isinstance(each, Entry)]
        return found

    def store(self) -> list[Effect]:
        return self.acknowledge(self.effects())

    def acknowledge(self, found: list[Effect]) -> list[Effect]:
        for each in found:
            if isinstance(each, Entry):
                self.board.stored(each)
            elif isinstance(each, DeliveryWritten):
                delivering.written(self.board, each)
        return found

    def states(self, found: list[Effect] | None = None) -> list[tuple[str, JobState]]:
        entries = [self._entry(each) for each in (self.store() if found is None else found) if isinstance(each, Entry)]
        return [(entry.request.id, entry.state) for entry in entries if isinstance(entry, JobRecord)]

    @staticmethod
    def _entry(entry: Entry) -> object:
        return None if entry.value is None else Pickled().unpack(entry.key, entry.value)

    def entries(self) -> list[object]:
        return [self._entry(each) for each in self.store() if isinstance(each, Entry)]

    def take(self, room: int = 10) -> list[Job]:
        return self.board.take(room, self.now_ms)

    def ids(self, room: int = 10) -> list[str]:
        return [job.id for job in self.take(room)]

    def end(self, job: Job, ending: Completed | Failure | Cancelled | None = None) -> None:
        self.board.ended([(job, job.version, ending or Completed())], self.now_ms)

    def pass_ms(self, ms: int) -> None:
        self.now_ms += ms
        self.board.due(self.now_ms)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- what is written, and when


def test_a_short_job_is_one_entry_which_settles_its_request(bench: Bench) -> None:
    bench.ask("a")
    (job,) = bench.take()
    bench.board.sync()
    assert not bench.effects()
    bench.end(job, Completed(b"42"))
    (entry,) = bench.effects()
    assert isinstance(entry, Entry)
    assert (entry.key, entry.settles) == (b"j/a", 0)
    record = Pickled().unpack(entry.key, entry.value or b"")
    assert isinstance(record, JobRecord)
    assert (record.state, record.attempt, record.outcome.result) == (S.COMPLETED, 1, b"42")
    bench.board.sync()
    bench.board.sync()
    assert not bench.effects()


def test_what_runs_is_written_at_the_second_sync_and_what_waits_for_its_turn_at_the_fourth(bench: Bench) -> None:
    bench.ask("a")
    bench.ask("b")
    bench.take(1)
    seen = []
    for _ in range(4):
        bench.board.sync()
        seen.append(bench.states())
    assert seen == [[], [("a", S.RUNNING)], [], [("b", S.QUEUED)]]
    (_job,) = bench.take(1)
    bench.board.sync()
    assert bench.states() == []
    bench.board.sync()
    assert bench.states() == [("b", S.RUNNING)]


def test_what_begins_after_a_wait_is_written_once_and_behind_those_of_its_key_that_came_before(bench: Bench) -> None:
    bench.ask("a", key="k")
    bench.ask("b", key="k")
    for _ in range(3):
        bench.board.sync()
    (first,) = bench.take()
    bench.board.sync()
    assert bench.states() == [("a", S.RUNNING), ("b", S.QUEUED)]
    bench.board.sync()
    assert bench.states() == []
    bench.end(first)
    assert bench.states() == [("a", S.COMPLETED)]


def test_what_waits_for_its_time_is_written_at_once_and_kept_as_bytes(bench: Bench) -> None:
    bench.ask("a", due_ms=NOW + MINUTE, payload=b"x" * 1_000)
    assert bench.states() == [("a", S.SCHEDULED)]
    job = bench.board.jobs["a"]
    assert isinstance(job, Job)
    assert job.request is None
    bench.pass_ms(MINUTE - 1)
    assert bench.take() == []
    assert bench.board.next_ms() == NOW + MINUTE
    bench.pass_ms(1)
    (job,) = bench.take()
    assert job.request is not None
    assert job.request.payload == b"x" * 1_000


def test_a_request_that_is_there_twice_is_one_job(bench: Bench) -> None:
    bench.ask("a")
    bench.board.admit([(0, bench.request("a"))], NOW)
    assert bench.effects() == []
    bench.ask("a")
    assert bench.effects() == [Settle(1)]
    (job,) = bench.take()
    assert bench.ids() == []
    bench.end(job)
    (entry,) = bench.effects()
    assert isinstance(entry, Entry)
    assert entry.settles == 0


def test_an_unknown_type_is_a_dead_letter_with_the_reason(bench: Bench) -> None:
    bench.ask("a", type="nobody's")
    bench.ask("b", type="nobody's")
    for _ in range(2):
        _entry, letter = bench.board.ledger.effects[:2]
        del bench.board.ledger.effects[:2]
        assert isinstance(letter, Letter)
        assert letter.record.outcome.error is not None
        assert "nobody's" in letter.record.outcome.error.message
    assert bench.take() == []


def test_a_type_that_the_next_owner_does_not_know_waits_until_it_would_run(bench: Bench) -> None:
    bench.ask("a", due_ms=NOW + MINUTE)
    bench.store()
    bench.policies = {"other": JobPolicy()}
    assert bench.restart() == []
    bench.pass_ms(MINUTE)
    assert bench.ids() == []
    assert bench.states() == [("a", S.DEAD_LETTER)]


# -- attempts


def test_attempts_count_executions_and_back_off_exactly(bench: Bench) -> None:
    bench.ask("a")
    for wait_ms in (1_000, 2_000):
        (job,) = bench.take()
        bench.end(job, LATER)
        assert bench.states() == [("a", S.RETRYING)]
        bench.pass_ms(wait_ms - 1)
        assert bench.take() == []
        bench.pass_ms(1)
    (job,) = bench.take()
    assert job.attempt == 3
    bench.end(job, LATER)
    entry, letter = bench.store()
    assert isinstance(letter, Letter)
    assert letter.record.state is S.DEAD_LETTER
    numbers = [each.number for each in history.parse(letter.record.outcome.history).attempts]
    assert numbers == [1, 2, 3]
    assert isinstance(entry, Entry)


def test_a_terminal_failure_and_one_that_says_when(bench: Bench) -> None:
    bench.ask("a")
    bench.ask("b", attempts=2, backoff=Backoff(7_000))
    first, second = bench.take()
    bench.end(first, NEVER)
    bench.end(second, replace(LATER, after_ms=123))
    assert bench.states() == [("a", S.DEAD_LETTER), ("b", S.RETRYING)]
    bench.pass_ms(122)
    assert bench.ids() == []
    bench.pass_ms(1)
    assert bench.ids() == ["b"]


def test_jitter_only_adds_and_is_spread() -> None:
    bench = Bench(t=JobPolicy(attempts=2, backoff=Backoff(1_000), jitter=0.5))
    for n in range(200):
        bench.ask(f"j{n}")
    for job in bench.take(200):
        bench.end(job, LATER)
    waits = [job.next_ms - NOW for job in bench.board.jobs.values() if isinstance(job, Job)]
    assert min(waits) >= 1_000
    assert max(waits) < 1_500
    assert len(set(waits)) > 120
    assert draw("a", 1) == draw("a", 1) != draw("a", 2)


def test_given_up_without_dead_letters_is_failed() -> None:
    bench = Bench(t=JobPolicy(attempts=1, dead_letter=False))
    bench.ask("a")
    bench.end(bench.take()[0], LATER)
    (entry,) = bench.store()
    assert bench.states([entry]) == [("a", S.FAILED)]


def test_a_warning_is_a_state(bench: Bench) -> None:
    bench.ask("a")
    bench.end(bench.take()[0], Completed(None, "a model was slow"))
    assert bench.states() == [("a", S.COMPLETED_WITH_WARNING)]


def test_what_is_late_changes_nothing(bench: Bench) -> None:
    bench.ask("a")
    (job,) = bench.take()
    version = job.version
    bench.board.stalled(job, version, NOW)
    (again,) = bench.take()
    bench.board.ended([(job, version, Completed())], NOW)
    bench.board.stalled(job, version, NOW)
    assert again.state is S.RUNNING
    assert again.stalls == 1
    bench.end(again)
    bench.board.ended([(again, again.version, LATER), (again, again.version - 1, LATER)], NOW)
    assert bench.states()[-1] == ("a", S.COMPLETED)
    assert bench.board.kinds["t"].running == 0


# -- stalls


def test_stalls_are_counted_apart_and_bounded(bench: Bench) -> None:
    bench.ask("a")
    for _ in range(3):
        (job,) = bench.take()
        assert job.attempt == 1
        bench.board.stalled(job, job.version, NOW)
    (job,) = bench.take()
    bench.board.stalled(job, job.version, NOW)
    assert bench.states()[-1] == ("a", S.DEAD_LETTER)
    assert bench.take() == []


def test_an_owner_that_dies_counts_as_a_stall_when_the_run_was_written(bench: Bench) -> None:
    bench.ask("a")
    bench.take()
    bench.board.sync()
    bench.board.sync()
    bench.store()
    for stalls in (1, 2, 3):
        assert bench.states(bench.restart()) == [("a", S.QUEUED)]
        (job,) = bench.take()
        assert (job.stalls, job.attempt) == (stalls, 1)
        bench.board.sync()
        bench.board.sync()
        bench.store()
    assert bench.states(bench.restart()) == [("a", S.DEAD_LETTER)]


def test_a_careful_board_lets_nothing_run_that_is_not_written(bench: Bench) -> None:
    bench.board.careful = True
    bench.ask("a")
    bench.ask("b", expires_ms=NOW + 5)
    assert bench.ids() == []
    assert bench.states() == [("a", S.RUNNING), ("b", S.RUNNING)]
    bench.now_ms += 5
    assert bench.ids() == ["a"]
    assert bench.states() == [("b", S.CANCELLED)]
    assert bench.board.kinds["t"].running == 1


def test_what_waits_for_its_entry_takes_up_room(bench: Bench) -> None:
    bench.board.careful = True
    for name in "abcd":
        bench.ask(name)
    assert bench.ids(2) == []
    assert bench.ids(2) == []
    assert len(bench.store()) == 2
    assert bench.ids(1) == ["a"]
    assert bench.ids(2) == ["b"]
    assert len(bench.store()) == 1
    assert bench.ids(4) == ["c"]
    assert bench.states() == [("d", S.RUNNING)]


def test_what_was_chosen_and_never_ran_is_given_back_and_counts_as_nothing() -> None:
    bench = Bench(t=JobPolicy(attempts=2, backoff=Backoff(1_000), jitter=0.0, max_stalled_count=0))
    bench.board.careful = True
    bench.ask("retried", key="k")
    bench.take()
    bench.store()
    bench.end(bench.take()[0], LATER)
    bench.pass_ms(1_000)
    bench.ask("behind", key="k")
    for name in ("a", "gone"):
        bench.ask(name)
    bench.ask("expires", expires_ms=bench.now_ms + MINUTE)
    bench.take()
    first, *others = [each for each in bench.effects() if isinstance(each, Entry) and each.gate is not None]
    bench.board.stored(first)
    assert (len(bench.board.chosen.confirmed), len(bench.board.chosen)) == (1, 4)
    bench.command(CancelJob("gone"))
    bench.effects()
    bench.board.chosen.give_back(bench.now_ms)
    assert len(bench.board.chosen) == bench.board.kinds["t"].running == 0
    found = bench.effects()
    assert bench.states(found) == [
        ("retried", S.QUEUED),
        ("a", S.QUEUED),
        ("gone", S.CANCELLED),
        ("expires", S.QUEUED),
    ]
    for each in others:
        bench.board.stored(each)  # late: they are past it
    assert bench.board.chosen.confirmed == []
    bench.restart()
    assert bench.board.lost == []
    jobs = bench.take(2)
    assert [(job.id, job.attempt, job.stalls) for job in jobs] == [("retried", 2, 0), ("a", 1, 0)]
    bench.pass_ms(MINUTE)
    assert ("expires", S.CANCELLED) in bench.states(), "it has not started"


def test_what_was_cancelled_while_it_waited_for_its_entry_does_not_run(bench: Bench) -> None:
    bench.board.careful = True
    bench.ask("a")
    bench.take()
    bench.command(CancelJob("a"))
    bench.store()
    assert bench.ids() == []
    assert bench.states() == [("a", S.CANCELLED)]
    assert bench.board.kinds["t"].running == len(bench.board.chosen) == 0


def test_what_is_let_go_runs_again_and_counts_as_nothing(bench: Bench) -> None:
    bench.ask("a")
    bench.end(bench.take()[0], Cancelled())
    assert bench.states() == [("a", S.QUEUED)]
    bench.restart()
    (job,) = bench.take()
    assert (job.attempt, job.stalls) == (1, 0)


# -- order by key


def test_a_key_runs_one_at_a_time_in_order_through_retries_and_a_crash(bench: Bench) -> None:
    for name in "abc":
        bench.ask(name, key="k")
    bench.ask("free")
    first, free = bench.take()
    assert (first.id, free.id) == ("a", "free")
    bench.end(first, LATER)
    bench.end(free)
    assert bench.ids() == []
    for _ in range(QUEUED_SYNCS):
        bench.board.sync()
    bench.store()
    bench.restart()
    bench.ask("d", key="k")
    assert bench.ids() == []
    bench.pass_ms(1_000)
    order = []
    while jobs := bench.take():
        order += [job.id for job in jobs]
        bench.end(jobs[0])
    assert order == ["a", "b", "c", "d"]


def test_a_delayed_job_blocks_nothing_until_it_is_due_and_then_stands_where_it_came_due(bench: Bench) -> None:
    bench.ask("later", key="k", due_ms=NOW + 1_000)
    bench.store()
    bench.ask("a", key="k")
    assert bench.ids() == []
    bench.store()
    (first,) = bench.take()
    bench.ask("b", key="k")
    bench.pass_ms(1_000)
    bench.ask("c", key="k")
    bench.store()
    order = [first.id]
    bench.end(first)
    while jobs := bench.take():
        order += [job.id for job in jobs]
        bench.end(jobs[0])
    assert order == ["a", "b", "later", "c"]


def test_many_of_one_instant_come_some_at_once_and_yet_in_the_order_of_their_keys(bench: Bench) -> None:
    bench.board.policy = replace(bench.board.policy, due=2)
    for n in range(5):
        bench.ask(f"j{n}", due_ms=NOW + MINUTE)
    bench.ask("later", key="k", due_ms=NOW + MINUTE)
    bench.store()
    bench.pass_ms(MINUTE)
    assert len(bench.board.lanes) == 2
    assert bench.board.next_ms() == NOW + MINUTE
    bench.ask("a", key="k")
    bench.store()
    assert bench.ids(10) == ["j0", "j1", "j2", "j3", "j4", "later"]


def test_one_that_runs_now_runs_behind_what_came_due_before_also_after_a_crash(bench: Bench) -> None:
    bench.ask("later", key="k", due_ms=NOW + MINUTE)
    bench.ask("a", key="k")
    bench.command(RunJobNow("later"))
    bench.store()
    bench.restart()
    (first,) = bench.take()
    bench.end(first)
    assert [first.id, *bench.ids()] == ["a", "later"]


def test_one_that_runs_now_leaves_the_order_of_those_that_it_waited_with(bench: Bench) -> None:
    names = [f"j{n}" for n in range(8)]
    for name in names:
        bench.ask(name, key="k", due_ms=NOW + MINUTE)
    bench.command(RunJobNow("j1"))
    bench.store()
    order = []
    for _ in range(2):
        while jobs := bench.take():
            order += [job.id for job in jobs]
            bench.end(jobs[0])
        bench.pass_ms(MINUTE)
    assert order == ["j1", *[name for name in names if name != "j1"]]


def test_what_came_due_before_is_written_before_what_is_due_some_day(bench: Bench) -> None:
    bench.ask("a", key="k")
    bench.ask("b", key="k")
    bench.ask("other", key="z")
    bench.take()
    bench.ask("later", key="k", due_ms=NOW + 1_000)
    assert bench.states() == [("a", S.RUNNING), ("b", S.QUEUED), ("later", S.SCHEDULED)]


def test_with_a_schedule_of_its_key_a_job_starts_when_it_is_written(bench: Bench) -> None:
    bench.command(PutSchedule(Schedule("s", "0 * * * *", JobRequest("", "t", key="k"))))
    bench.store()
    bench.ask("a", key="k")
    assert bench.ids() == []
    bench.store()
    assert bench.ids() == ["a"]
    bench.command(DropSchedule("s"))
    bench.end(bench.board.jobs["a"])  # type: ignore[arg-type]
    bench.ask("b", key="k")
    assert bench.ids() == ["b"]


# -- dedup


def test_within_a_window_the_first_job_is_the_answer(bench: Bench) -> None:
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    bench.now_ms += 999
    bench.ask("b", dedup_id="d", dedup_window_ms=1_000)
    bench.now_ms += 1
    bench.ask("c", dedup_id="d", dedup_window_ms=1_000)
    *_, answer = bench.entries()
    assert answer == JobDuplicate("b", "t", "a", NOW + 999, 1)
    assert bench.ids() == ["a", "c"]


def test_a_window_is_written_before_its_job_and_survives(bench: Bench) -> None:
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    bench.end(bench.take()[0])
    window, record = bench.entries()
    assert window == DedupWindow("t", "d", "a", NOW, NOW + 1_000)
    assert isinstance(record, JobRecord)
    bench.restart()
    bench.ask("b", dedup_id="d", dedup_window_ms=1_000)
    assert isinstance(bench.board.jobs["b"], JobDuplicate)


def test_a_window_ends_with_the_inbox_not_with_the_clock(bench: Bench) -> None:
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    late = bench.request("b", dedup_id="d", dedup_window_ms=1_000)
    bench.pass_ms(50_000)
    bench.admit(late)
    assert isinstance(bench.board.jobs["b"], JobDuplicate)
    bench.store()
    bench.pass_ms(0)
    assert Entry(dedup_key("t", "d"), None) not in bench.store()
    bench.ask("c")  # the inbox has been read past its end
    bench.pass_ms(0)
    assert Entry(dedup_key("t", "d"), None) in bench.store()


def test_one_that_failed_releases_its_window_where_the_type_says_so() -> None:
    bench = Bench(t=JobPolicy(attempts=1, release_on_failure=True))
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    bench.ask("b", dedup_id="d", dedup_window_ms=1_000)
    bench.end(bench.take()[0], LATER)
    assert bench.effects()[-1] == Entry(dedup_key("t", "d"), None)
    bench.log.pop()  # a crash before the tombstone
    bench.restart()
    bench.ask("c", dedup_id="d", dedup_window_ms=1_000)
    assert isinstance(bench.board.jobs["b"], JobDuplicate)
    assert bench.ids() == ["c"]


def test_types_and_ids_do_not_run_into_each_other() -> None:
    names = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("%25", "/")]
    assert len({dedup_key(*name) for name in names}) == 4
    assert [dedup_of(dedup_key(*name).decode().partition("/")[2]) for name in names] == names


# -- commands


def test_cancel_before_it_runs_and_while_it_runs(bench: Bench) -> None:
    bench.ask("waits", due_ms=NOW + MINUTE)
    bench.ask("runs")
    bench.ask("queued")
    (job,) = bench.take(1)
    bench.store()
    for name in ("waits", "queued", "runs"):
        assert bench.command(CancelJob(name, "not needed"))
    found = bench.effects()
    assert bench.states(found) == [("waits", S.CANCELLED), ("queued", S.CANCELLED), ("runs", S.RUNNING)]
    assert Interrupt(job, job.version) in found
    assert not bench.command(CancelJob("waits"))
    assert not bench.command(CancelJob("nobody"))
    bench.pass_ms(MINUTE)
    assert bench.ids() == []
    bench.end(job, LATER)
    assert bench.states() == [("runs", S.CANCELLED)]


def test_one_that_is_done_all_the_same_is_completed(bench: Bench) -> None:
    bench.ask("a")
    (job,) = bench.take()
    bench.command(CancelJob("a"))
    bench.end(job, Completed())
    assert bench.states()[-1] == ("a", S.COMPLETED)


def test_a_cancel_outlives_the_owner_that_ran_the_job(bench: Bench) -> None:
    bench.ask("a")
    bench.take()
    bench.command(CancelJob("a", "not needed"))
    bench.store()
    (entry,) = bench.restart()
    assert bench.states([entry]) == [("a", S.CANCELLED)]
    record = bench._entry(entry)  # type: ignore[arg-type]
    assert isinstance(record, JobRecord)
    assert record.outcome.reason == "not needed"
    assert bench.ids() == []


def test_one_more_round_for_what_was_given_up_and_only_once(bench: Bench) -> None:
    bench.ask("a", attempts=1, expires_ms=NOW + 10)
    bench.end(bench.take()[0], LATER)
    bench.now_ms += 1_000
    assert bench.command(RetryJob("a"))
    offset = bench.offset - 1
    bench.store()
    bench.restart()
    (job,) = bench.take()
    assert job.attempt == 1
    bench.end(job, LATER)
    bench.store()
    bench.restart()
    assert not commands.apply(bench.board, RetryJob("a"), offset, bench.now_ms), "it is read a second time"
    assert bench.ids() == []
    assert bench.command(RetryJob("a"))
    bench.end(bench.take()[0])
    assert bench.states()[-1] == ("a", S.COMPLETED)
    assert not bench.command(RetryJob("a")), "a job that completed is not run again"


def test_now_and_not_later(bench: Bench) -> None:
    bench.ask("a", due_ms=NOW + MINUTE)
    bench.store()
    assert bench.command(RunJobNow("a"))
    assert bench.states() == [("a", S.QUEUED)]
    assert bench.ids() == ["a"]
    assert not bench.command(RunJobNow("a"))
    bench.pass_ms(MINUTE)
    assert bench.ids() == []


def test_expired_before_it_started(bench: Bench) -> None:
    bench.ask("gone", expires_ms=NOW)
    bench.ask("soon", expires_ms=NOW + 1_000, due_ms=NOW + 2_000)
    bench.ask("queued", expires_ms=NOW + 1_000)
    bench.ask("started", expires_ms=NOW + 1_000, priority=10)
    (job,) = bench.take(1)
    bench.end(job, LATER)
    bench.store()
    bench.pass_ms(1_000)
    assert bench.states() == [("soon", S.CANCELLED), ("queued", S.CANCELLED)]
    assert bench.ids() == ["started"]


def test_one_that_was_let_go_behind_another_of_its_key_at_a_restore_expires_at_its_time(bench: Bench) -> None:
    bench.ask("first", key="k")
    bench.ask("then", key="k", expires_ms=NOW + MINUTE)
    for job_id in ("first", "then"):
        (job,) = bench.take()
        bench.board.sync()
        bench.board.sync()
        bench.store()
        bench.end(job)
        assert job.id == job_id
        bench.board.effects()  # the ending's write is lost
    assert bench.states(bench.restart()) == [("first", S.QUEUED), ("then", S.QUEUED)]
    assert bench.board.next_ms() == NOW + MINUTE
    bench.pass_ms(MINUTE)
    assert bench.states() == [("then", S.CANCELLED)]


# -- retention


def test_finished_jobs_are_kept_by_number_and_outcome_and_age() -> None:
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(2, 3, MINUTE)))
    for n in range(10):
        bench.ask(f"j{n}")
    for n, job in enumerate(bench.take()):
        bench.end(job, Completed() if n % 2 else LATER)
    for effect in bench.store():
        if isinstance(effect, Letter):
            bench.board.lettered(effect.record.request.id, effect.record.version)
    bench.store()
    bench.pass_ms(0)
    assert not bench.effects(), "the inbox may be read again from the beginning"
    bench.board.committed = 10
    bench.pass_ms(0)
    assert sorted(bench.board.jobs) == ["j4", "j6", "j7", "j8", "j9"]
    assert len(bench.effects()) == 5
    bench.restart()
    bench.board.committed = 10
    assert len(bench.board.jobs) == 5
    bench.pass_ms(MINUTE)
    assert not bench.board.jobs
    bench.effects()
    bench.restart()
    assert not bench.board.jobs


def test_one_whose_letter_is_not_acknowledged_is_kept_and_told_again() -> None:
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(0, 0, 0)))
    bench.ask("a")
    bench.end(bench.take()[0], LATER)
    bench.board.committed = 1
    bench.store()
    bench.pass_ms(MINUTE)
    assert not bench.effects()
    (letter,) = bench.restart()
    assert isinstance(letter, Letter)
    bench.board.committed = 1
    bench.board.lettered("a", letter.record.version)
    bench.pass_ms(0)
    assert [entry.value is None for entry in bench.effects() if isinstance(entry, Entry)] == [False, True]


# -- redriven


def given_up(bench: Bench, *names: str) -> None:
    for name in names:
        bench.ask(name)
    for job in bench.take():
        bench.end(job, LATER)
    for effect in bench.store():
        if isinstance(effect, Letter):
            bench.board.lettered(effect.record.request.id, effect.record.version)
    bench.store()
    bench.board.committed = bench.offset
    bench.pass_ms(0)
    bench.store()


@pytest.mark.parametrize("kept", [0, 500])
def test_a_letter_that_comes_twice_is_one_round_though_few_finished_jobs_are_kept(kept: int) -> None:
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(0, kept, MINUTE)))
    given_up(bench, "a", "b")
    assert sorted(bench.board.jobs) == (["a", "b"] if kept else [])
    for number, name in enumerate(("a", "b"), start=2):
        commands.redriven(bench.board, bench.request(name), -number, bench.now_ms)
    for job in bench.take():
        bench.end(job)
    bench.store()
    bench.pass_ms(1)
    bench.store()
    bench.restart()
    bench.board.committed = bench.offset
    bench.pass_ms(1)
    commands.redriven(bench.board, bench.request("a"), -2, bench.now_ms)
    assert bench.ids() == []
    assert bench.effects() == [Settle(-2)]
    assert [job.rounds for job in bench.board.jobs.values() if isinstance(job, Job)] == [1, 1]
    bench.pass_ms(MINUTE)
    assert not bench.board.jobs, "their time is over all the same"


def test_a_letter_of_a_job_that_is_forgotten_runs_though_the_job_was_to_expire_long_ago() -> None:
    """As one of a job that is known does: what it was given up for took its time."""
    bench = Bench(t=JobPolicy(attempts=1))
    bench.ask("known", expires_ms=bench.now_ms + MINUTE)
    bench.end(*bench.take(), NEVER)
    bench.store()
    letters = [bench.request(name, expires_ms=bench.now_ms + MINUTE) for name in ("known", "forgotten")]
    bench.pass_ms(2 * MINUTE)
    for number, letter in enumerate(letters, start=2):
        assert commands.redriven(bench.board, letter, -number, bench.now_ms) is None
    assert bench.ids() == ["known", "forgotten"]


def test_jobs_that_had_another_round_are_not_counted_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(1, 500, MINUTE)))
    given_up(bench, "a", "b", "c")
    for number, name in enumerate("abc", start=2):
        commands.redriven(bench.board, bench.request(name), -number, bench.now_ms)
    bench.ask("d")
    bench.ask("e")
    for job in bench.take():
        bench.end(job)
    bench.board.committed = bench.offset
    bench.pass_ms(1)
    assert sorted(bench.board.jobs) == ["a", "b", "c", "e"]
    monkeypatch.setattr(retention, "AGAIN_MAX", 2)
    bench.pass_ms(1)
    assert sorted(bench.board.jobs) == ["b", "c", "e"]


def test_those_that_had_another_round_take_no_place_of_what_was_given_up() -> None:
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(10, 3, MINUTE)))
    given_up(bench, "a", "b", "c")
    for name in "bc":
        bench.command(RetryJob(name))
    for job in bench.take():
        bench.end(job)
    given_up(bench, "d", "e")
    assert "a" in bench.board.jobs
    given_up(bench, "f")
    assert sorted(bench.board.jobs) == ["b", "c", "d", "e", "f"]


def test_those_that_had_another_round_are_not_kept_until_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie behind one that is kept, and each holds what was asked for."""
    monkeypatch.setattr(retention, "GONE_MAX", 3)
    bench = Bench(t=JobPolicy(attempts=1, retention=RetentionPolicy(10, 3, MINUTE)))
    given_up(bench, "real")
    bad = bench.board.kinds["t"].bad
    for n in range(20):
        given_up(bench, f"j{n}")
        bench.command(RetryJob(f"j{n}"))
        bench.end(bench.take()[0])
        assert len(bad.entries) <= 5
    given_up(bench, "b", "c", "d")
    assert [job.id for _, _, job in bad.entries] == ["b", "c", "d"]
    assert bad.gone == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_duplicates_do_not_count_with_the_jobs_whose_results_they_are_told(restarted: bool) -> None:
    bench = Bench(t=JobPolicy(retention=RetentionPolicy(2, 2, MINUTE)))
    bench.ask("a", dedup_id="d", dedup_window_ms=MINUTE)
    bench.end(*bench.take())
    for number in range(9):
        bench.ask(f"same-{number}", dedup_id="d", dedup_window_ms=MINUTE)
    bench.store()
    if restarted:
        bench.restart()
    bench.board.committed = bench.offset
    bench.pass_ms(1)
    assert list(bench.board.jobs) == ["a", "same-7", "same-8"], "as many of them as of those that completed"
    bench.pass_ms(MINUTE)
    assert not bench.board.jobs


def test_more_of_them_are_kept_than_a_redrive_can_have_sent_and_not_recorded() -> None:
    assert retention.AGAIN_MAX > WINDOW + FETCH


EDITED = {"payload": b'"fixed"', "attempts": 7, "tenant": "beta", "priority": 12}


@pytest.mark.parametrize("key", [None, "k"])
def test_an_edited_letter_is_what_the_new_round_is_asked_for_and_read_twice_it_is_one_round(key: str | None) -> None:
    bench = Bench(t=JobPolicy(attempts=1))
    bench.ask("a", payload=b'"wrong"', key=key, expires_ms=NOW + 9 * MINUTE)
    bench.end(*bench.take(), NEVER)
    bench.store()
    asked_ms = NOW
    bench.pass_ms(MINUTE)
    edited = bench.request("a", key=key, expires_ms=NOW + 9 * MINUTE, **EDITED)
    assert commands.redriven(bench.board, edited, -2, bench.now_ms) is None
    entry, settle = bench.store()
    assert settle == Settle(-2)
    assert isinstance(entry, Entry)
    record = bench._entry(entry)
    assert isinstance(record, JobRecord)
    assert record.request == JobRequest("a", "t", created_ms=asked_ms, key=key, **EDITED)  # type: ignore[arg-type]
    bench.restart()  # before it was committed that this is settled
    assert commands.redriven(bench.board, edited, -2, bench.now_ms) is None
    assert bench.store() == [Settle(-2)]
    (job,) = bench.take()
    assert job.request is not None
    assert (job.request.payload, job.attempts, job.tenant, job.priority, job.rounds) == (b'"fixed"', 7, "beta", 12, 1)
    assert commands.redriven(bench.board, edited, -3, bench.now_ms) is None
    bench.end(job)
    assert commands.redriven(bench.board, edited, -4, bench.now_ms) is None
    assert bench.ids() == []


@pytest.mark.parametrize("restarted", [False, True])
def test_a_letter_that_is_redriven_comes_behind_those_of_its_key_that_came_due_before(restarted: bool) -> None:
    """Also where those were restored, though its job was asked for before them."""
    bench = Bench(t=JobPolicy(attempts=1))
    bench.ask("a", key="k")
    bench.end(*bench.take(), NEVER)
    for name in ("b", "c", "d"):
        bench.ask(name, key="k")
    for _ in range(QUEUED_SYNCS):
        bench.board.sync()
    bench.store()
    if restarted:
        bench.restart(bench.offset)
    assert commands.redriven(bench.board, bench.request("a", key="k"), -2, bench.now_ms) is None
    ran = []
    while taken := bench.take():
        ran += [job.id for job in taken]
        bench.end(*taken)
        bench.store()
    assert ran == ["b", "c", "d", "a"]


def test_an_edited_letter_changes_neither_who_a_job_is_nor_where_its_place_is() -> None:
    bench = Bench(t=JobPolicy(attempts=1))
    bench.ask("a", key="k", dedup_id="d", dedup_window_ms=MINUTE, schedule="s")
    bench.end(*bench.take(), NEVER)
    bench.store()
    edited = bench.request("a", type="other", key="j", dedup_id="e", dedup_window_ms=5, schedule=None, payload=b"1")
    commands.redriven(bench.board, edited, -2, bench.now_ms)
    (job,) = bench.take()
    assert job.request == bench.request("a", key="k", dedup_id="d", dedup_window_ms=MINUTE, schedule="s", payload=b"1")
    assert job.kind.name == "t"


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING, S.RETRYING, S.COMPLETED])
def test_an_edited_letter_of_a_job_that_is_not_given_up_is_not_taken_and_not_lost_without_a_word(state: S) -> None:
    bench = Bench(t=JobPolicy(attempts=2))
    bench.ask("a", payload=b"1")
    for job in bench.take() if state is not S.QUEUED else ():
        if state is not S.RUNNING:
            bench.end(job, Completed() if state is S.COMPLETED else LATER)
    bench.board.sync()
    for _ in range(QUEUED_SYNCS):
        bench.board.sync()
    bench.store()
    failure = commands.redriven(bench.board, bench.request("a", payload=b"2"), -2, bench.now_ms)
    assert failure is not None
    assert failure.error_class == commands.NOT_TAKEN
    assert failure.message.startswith(f"job a is {state.value}, ")
    assert bench.effects() == [], "its number is not settled"
    assert commands.redriven(bench.board, bench.request("a", payload=b"1"), -3, bench.now_ms) is None
    assert bench.effects() == [Settle(-3)], "one that nobody edited is the same job"


# -- schedules


def schedule(bench: Bench, **change: object) -> None:
    made = Schedule("s", "* * * * *", JobRequest("", "t", payload=b"p"), misfire=Misfire.ALL)
    bench.command(PutSchedule(replace(made, **change)))  # type: ignore[arg-type]


def test_a_tick_is_one_job_whoever_fires_it(bench: Bench) -> None:
    schedule(bench)
    bench.store()
    bench.pass_ms(MINUTE)
    found = [bench._entry(each) for each in bench.board.ledger.effects if isinstance(each, Entry)]
    assert [type(each) for each in found] == [JobRecord, ScheduleRecord], "the job before the schedule that goes on"
    first = bench.board.effects()[0]
    assert isinstance(first, Entry)
    bench.log.append((first.key, first.value))  # a crash between the two
    bench.restart()
    bench.pass_ms(0)
    (job,) = bench.take()
    assert job.id == tick_id("s", NOW + MINUTE)
    assert job.request is not None
    assert (job.request.payload, job.request.schedule) == (b"p", "s")
    bench.pass_ms(1)
    assert bench.take() == []


def test_missed_ticks_fire_after_a_restart_as_the_policy_says(bench: Bench) -> None:
    schedule(bench)
    bench.store()
    bench.now_ms += 5 * MINUTE
    bench.restart()
    bench.pass_ms(0)
    assert bench.ids() == [tick_id("s", NOW + n * MINUTE) for n in range(1, 6)]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("fires_first", [False, True])
def test_of_a_key_jobs_and_ticks_begin_in_the_order_in_which_they_came_due(
    bench: Bench, restarts: bool, fires_first: bool
) -> None:
    schedule(bench, request=JobRequest("", "t", key="k"))
    schedule(bench, name="other", cron="*/2 * * * *", request=JobRequest("", "t", key="k"))
    bench.ask("second", key="k", due_ms=NOW + MINUTE + 30_000)
    bench.ask("first", key="k", due_ms=NOW + 30_000)
    bench.store()
    bench.now_ms += 3 * MINUTE
    if fires_first:
        bench.pass_ms(0)
        bench.store()
    for each in bench.restart() if restarts else []:
        if isinstance(each, Entry):
            bench.board.stored(each)
    bench.pass_ms(0)
    bench.store()
    began = []
    while jobs := bench.take():
        began += [job.id for job in jobs]
        for job in jobs:
            bench.end(job)
        bench.store()
    at = [tick_id("s", NOW + MINUTE), "second", tick_id("s", NOW + 2 * MINUTE), tick_id("other", NOW + 2 * MINUTE)]
    assert began == ["first", *at, tick_id("s", NOW + 3 * MINUTE)]


def test_a_pause_misses_nothing_and_the_same_again_changes_nothing(bench: Bench) -> None:
    schedule(bench)
    bench.command(PauseSchedule("s"))
    bench.pass_ms(5 * MINUTE)
    bench.store()
    bench.restart()
    bench.pass_ms(0)
    assert bench.ids() == []
    bench.command(PauseSchedule("s", paused=False))
    bench.pass_ms(MINUTE - 1)
    schedule(bench)
    assert bench.ids() == []
    bench.pass_ms(1)
    assert bench.ids() == [tick_id("s", NOW + 6 * MINUTE)]


def test_a_changed_schedule_goes_by_its_new_expression(bench: Bench) -> None:
    schedule(bench)
    schedule(bench, cron="30 * * * *")
    bench.pass_ms(29 * MINUTE)
    assert bench.ids() == []
    bench.pass_ms(MINUTE)
    assert bench.ids() == [tick_id("s", NOW + 30 * MINUTE)]


def test_a_run_beside_the_ticks_is_one_job_however_often_it_is_read(bench: Bench) -> None:
    schedule(bench)
    command = RunScheduleNow("s", NOW + 5)
    assert bench.command(command)
    offset = bench.offset - 1
    first = next(each for each in bench.board.effects() if isinstance(each, Entry) and each.key.startswith(b"j/"))
    bench.log.append((first.key, first.value))
    bench.restart()
    schedule(bench)
    commands.apply(bench.board, command, offset, NOW + 99)
    assert len(bench.ids()) == 1
    assert not bench.command(RunScheduleNow("nobody's", NOW))


def test_a_dropped_schedule_is_gone(bench: Bench) -> None:
    schedule(bench)
    assert bench.command(DropSchedule("s"))
    bench.store()
    bench.pass_ms(2 * MINUTE)
    bench.restart()
    bench.pass_ms(2 * MINUTE)
    assert bench.ids() == []
    assert not bench.command(DropSchedule("s"))


def test_a_schedule_that_nobody_here_understands_stops_nobody(bench: Bench) -> None:
    assert not bench.command(PutSchedule(Schedule("s", "every day", JobRequest("", "t"))))
    assert bench.effects() == [Settle(0)]
    strange = ScheduleRecord(Schedule("s", "0 3 * * * 2027", JobRequest("", "t"), "Mars/Olympus"), NOW + 1, offset=-1)
    bench.log.append((b"s/s", Pickled().pack(strange)))
    bench.restart()
    bench.pass_ms(MINUTE)
    assert bench.ids() == []
    assert not bench.command(PauseSchedule("s"))
    write_again(bench.board, [b"s/s"])
    assert strange in bench.entries()
    schedule(bench)
    bench.pass_ms(MINUTE)
    assert bench.ids() == [tick_id("s", NOW + 2 * MINUTE)]


def test_what_a_stranger_wrote_over_is_written_again(bench: Bench) -> None:
    schedule(bench)
    bench.ask("late", due_ms=NOW + MINUTE, dedup_id="d/1", dedup_window_ms=1_000)
    bench.ask("again", dedup_id="d/1", dedup_window_ms=1_000)
    bench.ask("done", type="t")
    bench.end(bench.take()[0])
    bench.ask("runs")
    bench.take()
    bench.board.sync()
    bench.board.sync()
    bench.store()
    truth = dict(bench.log)
    write_again(bench.board, [*truth, b"j/nobody", b"d/t/other", b"s/other"])
    written = {each.key: each.value for each in bench.effects() if isinstance(each, Entry)}
    assert len(truth) == 6
    assert {key: written[key] for key in truth} == truth
    assert [written[key] for key in (b"j/nobody", b"d/t/other", b"s/other")] == [None] * 3


def test_a_clock_that_goes_back_starts_nothing_early(bench: Bench) -> None:
    schedule(bench)
    bench.ask("a", due_ms=NOW + 30_000)
    bench.pass_ms(-MINUTE)
    bench.pass_ms(MINUTE + 29_999)
    assert bench.ids() == []
    bench.pass_ms(30_001)
    assert bench.ids() == ["a", tick_id("s", NOW + MINUTE)]
    bench.pass_ms(-MINUTE)
    bench.pass_ms(MINUTE)
    assert bench.ids() == []


@pytest.mark.parametrize("key", [None, "k"])
def test_a_duplicate_s_answer_stands_behind_an_entry_of_the_first_one(key: str | None) -> None:
    """Else whoever waits for the result would look for it, and find that there is no such job."""
    bench = Bench()
    if key is not None:
        bench.ask("before", key=key)
    bench.ask("first", key=key, dedup_id="d", dedup_window_ms=MINUTE)
    assert bench.effects() == []
    bench.ask("second", key=key, dedup_id="d", dedup_window_ms=MINUTE)
    before = [] if key is None else [b"j/before"]
    keys = [each.key for each in bench.effects() if isinstance(each, Entry)]
    assert keys == [*before, dedup_key("t", "d"), b"j/first", b"j/second"]


def test_what_a_duplicate_has_written_early_does_not_pass_those_before_it_at_the_next_owner(bench: Bench) -> None:
    """The next owner has what is in the store at once, and takes the rest from the inbox, behind it."""
    bench.ask("ended")
    bench.ask("runs")
    bench.ask("waits")
    bench.end(bench.take(1)[0])
    bench.take(1)
    bench.ask("first", dedup_id="d", dedup_window_ms=MINUTE)
    bench.ask("later")
    bench.ask("second", dedup_id="d", dedup_window_ms=MINUTE)
    assert bench.states() == [
        ("ended", S.COMPLETED),
        ("runs", S.RUNNING),
        ("waits", S.QUEUED),
        ("first", S.QUEUED),
    ]
    bench.restart()
    assert bench.ids() == ["runs", "waits", "first"]


def stored(bench: Bench, job_id: str, state: JobState, number: int, **more: int) -> None:
    """An entry as an earlier owner wrote it."""
    request = bench.request(job_id, key="k")
    attempt = 0 if state is S.QUEUED else 1
    record = JobRecord(request, state, attempt, number, attempt=attempt, ready_ms=NOW, offset=number, **more)
    bench.log.append((b"j/" + job_id.encode(), Pickled().pack(record)))


def test_of_a_key_s_jobs_that_seem_to_run_only_the_first_does() -> None:
    """That the first had ended was written, and lost; what stood behind it was not."""
    bench = Bench()
    stored(bench, "second", S.RUNNING, 0, started_ms=NOW + 9)
    stored(bench, "first", S.RUNNING, 1, started_ms=NOW + 1)
    bench.restart()
    (first,) = bench.take()
    assert (first.id, first.attempt, first.stalls) == ("first", 1, 1)
    bench.end(first)
    bench.store()
    (second,) = bench.take()
    assert (second.id, second.attempt, second.stalls) == ("second", 1, 0)
    bench.end(second)
    assert bench.ids() == []


@pytest.mark.parametrize("running", [False, True])
def test_a_job_whose_entry_got_lost_comes_before_those_of_its_key_whose_entries_did_not(running: bool) -> None:
    """Its request is read again when the next owner has those already."""
    bench = Bench()
    if running:
        stored(bench, "runs", S.RUNNING, 0, started_ms=NOW + 1)
    stored(bench, "third", S.QUEUED, 3)
    stored(bench, "fourth", S.QUEUED, 4)
    bench.restart()
    bench.board.admit([(1, bench.request("first", key="k"))], NOW)
    bench.board.admit([(2, bench.request("second", key="k"))], NOW)
    bench.board.admit([(5, bench.request("fifth", key="k"))], NOW)
    bench.store()
    ran = []
    while taken := bench.take():
        (job,) = taken
        ran.append(job.id)
        bench.end(job)
        bench.store()
    assert ran == [*(["runs"] if running else []), "first", "second", "third", "fourth", "fifth"]


def test_a_retry_that_was_restored_behind_another_of_its_key_waits_for_it_and_for_its_time() -> None:
    bench = Bench()
    stored(bench, "first", S.RUNNING, 0, started_ms=NOW + 1)
    stored(bench, "second", S.RETRYING, 1, started_ms=NOW + 9, next_ms=NOW + 1_000)
    bench.restart()
    bench.ask("third", key="k")
    (first,) = bench.take()
    assert first.id == "first"
    bench.end(first)
    assert bench.ids() == []
    bench.pass_ms(1_000)
    (second,) = bench.take()
    assert (second.id, second.attempt) == ("second", 2)
    bench.end(second)
    assert bench.ids() == ["third"]


def test_a_retry_is_not_early_for_an_owner_whose_clock_is_ahead() -> None:
    bench = Bench()
    bench.board.spread_ms = 30
    bench.ask("a")
    (job,) = bench.board.take(1, NOW)
    bench.board.ended([(job, job.version, LATER)], NOW)
    assert bench.board.next_ms() == NOW + 1_030


@pytest.mark.parametrize("later", [False, True])
def test_a_window_whose_write_was_lost_is_there_again_with_its_job(later: bool) -> None:
    """Its write failed, that of the job behind it did not, and the owner died before it could write again."""
    bench = Bench()
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    if later:
        bench.now_ms += 1_000
        bench.ask("b", dedup_id="d", dedup_window_ms=1_000)
    for job in bench.board.take(2, bench.now_ms):
        bench.board.ended([(job, job.version, Completed())], bench.now_ms)
    bench.effects()
    bench.log = [each for each in bench.log if each[0].startswith(b"j/")]
    window = DedupWindow("t", "d", "b" if later else "a", bench.now_ms, bench.now_ms + 1_000)
    effects = bench.restart()
    assert bench.board.dedup.windows == {("t", "d"): window}
    assert isinstance(effects[-1], Entry)
    assert effects[-1].key == dedup_key("t", "d")
    bench.ask("c", dedup_id="d", dedup_window_ms=1_000)
    assert isinstance(bench.board.jobs["c"], JobDuplicate)


def test_a_window_that_is_over_does_not_come_back_with_each_owner(bench: Bench) -> None:
    for n in range(20):
        bench.ask(f"j{n}", dedup_id=f"d{n}", dedup_window_ms=1_000, due_ms=NOW + 60 * MINUTE)
    bench.ask("long", dedup_id="d", dedup_window_ms=MINUTE, due_ms=NOW + 60 * MINUTE)
    bench.now_ms += 1_000
    bench.ask("last", due_ms=NOW + 60 * MINUTE)
    bench.pass_ms(0)
    bench.store()
    assert len(bench.board.dedup.windows) == 1
    assert bench.restart(bench.offset) == []
    bench.pass_ms(0)
    assert bench.effects() == []
    assert list(bench.board.dedup.windows) == [("t", "d")]


def test_what_the_inbox_brings_again_may_fall_into_a_window_still() -> None:
    """How far it was read is not told by what is above the committed offset, nor by times that another clock told."""
    policy = JobPolicy(attempts=1, backoff=Backoff(1_000), jitter=0.0)
    bench = Bench(**{"t": policy, DELIVERY: policy})
    bench.ask("a", dedup_id="d", dedup_window_ms=1_000)
    committed = bench.offset
    again = bench.request("again", dedup_id="d", dedup_window_ms=1_000)
    bench.admit(again)
    bench.now_ms += 5_000
    late = {"created_ms": bench.now_ms, "due_ms": NOW + 60 * MINUTE}
    bench.ask("above", **late)
    names = ["tick", "delivery", "redriven"]
    bench.board.accept(bench.request("tick", schedule="s", **late), -1, bench.now_ms)
    bench.board.accept(bench.request("delivery", **late)._replace(type=DELIVERY), -1, bench.now_ms)
    commands.redriven(bench.board, bench.request("redriven", **late), -2, bench.now_ms)
    for name in names:
        # a command that was read long before it, as it were, gives it an offset below the committed one
        assert commands.apply(bench.board, RunJobNow(name), 0, bench.now_ms)
    for _ in range(QUEUED_SYNCS):
        bench.board.sync()
    bench.store()
    bench.log = [each for each in bench.log if each[0] != b"j/again"]
    bench.restart(committed)
    assert bench.board.read_ms == NOW
    bench.pass_ms(0)
    bench.board.admit([(committed, again)], bench.now_ms)
    assert isinstance(bench.board.jobs["again"], JobDuplicate)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_window_that_was_released_does_not_come_back_when_its_job_has_another_round(restarted: bool) -> None:
    bench = Bench(t=JobPolicy(attempts=1, release_on_failure=True, dead_letter=False))
    bench.ask("a", dedup_id="d", dedup_window_ms=MINUTE)
    bench.end(bench.take()[0], NEVER)
    bench.command(RetryJob("a"))
    bench.end(bench.take()[0])
    bench.store()
    if restarted:
        assert bench.restart() == []
    bench.ask("b", dedup_id="d", dedup_window_ms=MINUTE)
    assert bench.ids() == ["b"]
