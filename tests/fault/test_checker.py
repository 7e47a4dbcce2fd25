"""The checker can say no: histories that are right, the same with one thing wrong, and real workers that cheat."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.progress import Progress
from tests.fault.bound import in_flight_max, losses, work_max
from tests.fault.checker import judge, recovery_s
from tests.fault.feed import Mix, values
from tests.fault.history import Blind, Commit, Copy, History, Sent
from tests.fault.trial import Plan, Trial
from tests.integration.ledger import Mark

SOURCE, TIER, DEAD = "s", "s.g.retry.1s", "s.g.dlq"


def mark(at: float, what: str, offset: int, key: str, attempt: int = 1, pid: int = 1) -> Mark:
    return Mark(at, pid, what, 0, offset, key, attempt)


def copy(topic: str, offset: int, at: float, origin: int, hop: int = 1, attempt: int = 1) -> Copy:
    return Copy(topic, 0, offset, int(at * 1000), (0, origin), hop, attempt, 1)


def commit(at: float, offset: int, end: int = 0, opened: tuple[int, ...] = (), topic: str = SOURCE) -> Commit:
    return Commit(int(at * 1000), topic, 0, Progress(offset, end or offset, opened, 1))


def good() -> History:
    """Key a: 0 fails once and is done, 2 waits behind it. Key b: 1 is done, 3 is rejected."""
    return History(
        sent={(0, n): Sent(n, "ab"[n % 2], n != 3) for n in range(4)},
        source={(0, n): n for n in range(4)},
        marks=[
            mark(10.0, "start", 0, "a"), mark(10.1, "fail", 0, "a"), mark(10.1, "start", 1, "b"),
            mark(10.2, "done", 1, "b"), mark(10.2, "start", 3, "b"), mark(10.3, "reject", 3, "b"),
            mark(11.2, "start", 0, "a", 2), mark(11.3, "done", 0, "a", 2),
            mark(11.3, "start", 2, "a"), mark(11.4, "done", 2, "a"),
        ],
        lanes=[copy(TIER, 0, 10.15, 0), copy(TIER, 1, 10.16, 2, attempt=0)],
        dead=[copy(DEAD, 0, 10.35, 3)],
        outputs=[(0, 1), (0, 0), (0, 2)],
        written=[(0, 1), (0, 0), (0, 2)],
        commits=[commit(10.18, 1), commit(10.5, 4), commit(11.5, 2, topic=TIER)],
        tiers_s=(1.0, 3.0),
        name=SOURCE,
    )  # fmt: skip


def test_a_history_that_is_right_has_no_problem() -> None:
    assert judge(good()).problems(repeats=False) == {}
    assert judge(replace(good(), seen=good().outputs), exactly_once=True).problems(repeats=False) == {}


def without(history: History, *marks: tuple[str, int]) -> History:
    return replace(history, marks=[m for m in history.marks if (m.what, m.offset) not in marks])


def marks_of(history: History, *more: Mark) -> History:
    return replace(history, marks=sorted([*history.marks, *more]))


def late_copy(commits: list[Commit]) -> History:
    """A hop of record 0 that a dead owner's producer wrote late, and that does not count."""
    return replace(good(), lanes=[copy(TIER, 0, 10.15, 0), copy(TIER, 1, 10.16, 2, attempt=0), copy(TIER, 2, 10.17, 0, 2)],
                   commits=[*good().commits[:2], *commits, commit(11.5, 3, topic=TIER)])  # fmt: skip


def test_a_copy_that_does_not_count_may_be_settled_while_the_record_is_open_elsewhere() -> None:
    assert judge(late_copy([commit(10.6, 0, 3, (0, 1), TIER)])).problems(repeats=False) == {}
    assert set(judge(late_copy([commit(10.6, 1, 3, (1,), TIER)])).problems(repeats=False)) == {"passed"}


WRONG: dict[str, tuple[Callable[[], History], str]] = {
    "lost": (lambda: without(good(), ("start", 2), ("done", 2)), "lost passed"),
    "acknowledged and not there": (lambda: replace(good(), source={(0, n): n for n in range(3)}), "unread"),
    "another record in its place": (lambda: replace(good(), source={(0, n): n * (n != 2) for n in range(4)}), "unread"),
    "done and a dead letter": (
        lambda: replace(good(), dead=[*good().dead, copy(DEAD, 1, 11, 2)]), "two_endings"),
    "two dead letters": (lambda: replace(good(), dead=[*good().dead, copy(DEAD, 1, 11, 3)]), "repeated"),
    "done twice": (lambda: marks_of(good(), mark(10.25, "done", 1, "b")), "repeated"),
    "run again though committed": (
        lambda: marks_of(good(), mark(12.0, "start", 1, "b", 1, 2), mark(12.1, "done", 1, "b", 1, 2)), "needless repeated"),
    "a successor overtakes": (
        lambda: marks_of(without(good(), ("start", 2), ("done", 2)), mark(10.3, "start", 2, "a"),
                         mark(10.4, "done", 2, "a")), "disorder"),
    "a retry too early": (
        lambda: replace(good(), marks=[m._replace(at=m.at - 0.3) if m.attempt == 2 else m for m in good().marks]),
        "early"),
    "an attempt skipped": (
        lambda: replace(good(), marks=[m._replace(attempt=3) if m.attempt == 2 else m for m in good().marks]), "early"),
    "committed before it was done": (
        lambda: replace(good(), commits=[commit(10.15, 2), *good().commits[1:]]), "passed"),
    "called done in the metadata before it was": (
        lambda: replace(good(), commits=[commit(10.18, 1, 4, (2,)), *good().commits[1:]]), "passed"),
    "a copy committed past before it had ended": (
        lambda: replace(good(), commits=[*good().commits[:2], commit(11.0, 2, topic=TIER)]), "passed"),
    "never committed": (lambda: replace(good(), commits=good().commits[:1]), "unsettled"),
    "a commit taken back": (
        lambda: replace(good(), commits=[*good().commits, commit(12.0, 2)]), "setbacks"),
    "an output lost": (lambda: replace(good(), outputs=good().outputs[:2]), "outputs_lost"),
    "an output twice": (lambda: replace(good(), outputs=[*good().outputs, (0, 1)]), "outputs_twice"),
    "outputs of a key turned round": (lambda: replace(good(), outputs=[(0, 2), (0, 0), (0, 1)]), "outputs_disorder"),
    "a reader beside saw more": (lambda: replace(good(), seen=[*good().outputs, (0, 3)]), "outputs_lost"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_and_nothing_else(name: str) -> None:
    make, kind = WRONG[name]
    assert set(judge(make()).problems(repeats=False)) == set(kind.split())


def test_in_exactly_once_an_output_twice_is_never_allowed() -> None:
    twice = replace(good(), outputs=[*good().outputs, (0, 1)])
    assert judge(twice).problems(repeats=True) == {}
    assert set(judge(twice, exactly_once=True).problems(repeats=True)) == {"two_endings"}


def test_in_a_transaction_a_copy_may_be_written_after_the_offset_but_not_never() -> None:
    early = replace(good(), commits=[commit(10.12, 1), *good().commits[1:]], outputs=good().outputs)
    assert set(judge(early).problems(repeats=False)) == {"passed"}
    assert judge(early, exactly_once=True).problems(repeats=False) == {}
    long_before = replace(good(), commits=[commit(0.0, 1), *good().commits[1:]])
    assert set(judge(long_before, exactly_once=True).problems(repeats=False)) == {"passed"}


def test_what_was_in_flight_may_run_again_and_a_sleeper_may_not_know() -> None:
    again = [mark(10.3, "start", 1, "b", 1, 2), mark(10.4, "done", 1, "b", 1, 2)]
    found = judge(marks_of(good(), *again))
    assert found.problems(repeats=True) == {}
    assert set(found.problems(repeats=False)) == {"repeated"}
    late = marks_of(good(), mark(13.0, "start", 1, "b", 1, 7), mark(13.1, "done", 1, "b", 1, 7))
    assert set(judge(late).problems(repeats=True)) == {"needless"}
    assert judge(replace(late, blind=[Blind(7, 12.0, 14.0)])).problems(repeats=True) == {}


def test_what_is_in_flight_and_recovery_are_measured() -> None:
    assert in_flight_max(good()) == 3, "0 waits, 1 and 3 are not committed yet"
    sent = {(p, n) for p in (0, 1) for n in range(2)}
    marks = [Mark(at, 1, "done", p, n, "k", 1) for at, p, n in ((1, 0, 0), (5, 0, 1), (7, 1, 0), (8, 1, 1))]
    assert recovery_s(marks, sent, 4.0) == 3.0
    assert recovery_s(marks, sent, 9.0) == 0.0


def test_what_a_death_may_repeat_does_not_grow_with_what_is_not_committed() -> None:
    marks = [mark(n / 100, what, n, "k") for n in range(1_000) for what in ("start", "done")]
    silent = History({}, {}, marks, name=SOURCE)
    assert in_flight_max(silent) == 1_000
    assert work_max(silent, concurrency=20, commit_s=0.5) == 20 + 151, "what began in three intervals, and what ran"
    regular = replace(silent, commits=[commit(n / 100, n) for n in range(50, 1_001, 50)])
    assert work_max(regular, concurrency=20, commit_s=0.5) == in_flight_max(regular) <= 51
    assert work_max(silent, concurrency=20, commit_s=0.5, away_s=4.0) == 1_000, "no commit came through"


def test_partitions_that_are_lost_at_once_are_one_disturbance() -> None:
    lines = [
        {"event": event, "timestamp": f"2026-01-01T00:00:{second:06.3f}Z"}
        for event, second in (
            ("partition lost", 1.0), ("partition lost", 1.1), ("partition open", 7.0), ("partition lost", 9.0)
        )
    ]  # fmt: skip
    assert losses(lines) == 2
    assert losses(lines[2:3]) == 0


CHEATS: dict[str, tuple[str, dict[str, Any]]] = {
    "commit early": ("passed", {}),
    "skip": ("lost", {}),
    "twice": ("repeated", {}),
    "retry early": ("early", {}),
    "reorder": ("disorder", {"order": "key_relaxed"}),
    "honest": ("", {}),
}


@pytest.mark.timeout(180)
def test_workers_that_cheat_are_seen_on_real_kafka(kafka: str) -> None:
    """Real processes, one for each way of cheating, and one that keeps its promises."""
    mix = Mix(failing=0.05, poison=0, rejected=0.01, slow=0.4, slow_s=0.3, emits=3)
    plan = Plan(records=600, rate=600, seed=3, partitions=2, mix=mix, graceful=True)
    assert sum("fails" in value for _, value in values(plan.seed, plan.records, mix) if isinstance(value, dict)) > 15
    found = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, Trial] = {}
        for cheat, (_, subscribe) in CHEATS.items():
            ground: Any = SimpleNamespace(direct=kafka)
            trial = Trial(ground, 0, cheat, replace(plan, subscribe=subscribe), lambda _text: None)
            running[cheat] = stack.enter_context(trial)
            trial.make_topics()
            trial.worker(cheat=cheat)
        for trial in running.values():
            trial.shared(trial.live)
            trial.feed.start()
        for cheat, trial in running.items():
            trial.feed.wait()
            trial.wait(f"{cheat}: everything is committed", trial.drained, 60)
            assert all(process.stop() == 0 for process in trial.live)
            found[cheat] = judge(trial.history()).problems(repeats=False)
    for cheat, (kind, _) in CHEATS.items():
        assert (kind in found[cheat]) if kind else found[cheat] == {}, (cheat, found[cheat])


@pytest.mark.timeout(120)
def test_a_worker_that_commits_rarely_repeats_more_than_a_death_may(kafka: str) -> None:
    """The bound of I4 is not what a product leaves uncommitted. The load lasts for more than twice as long as the bound looks at."""
    easy = Mix(failing=0, poison=0, rejected=0, slow=0, emits=0)
    plan = Plan(
        records=800, rate=100, lasts_s=0, seed=5, partitions=2, mix=easy, subscribe={"concurrency": 20}
    )  # fmt: skip
    problems = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, Trial] = {}
        for cheat in ("commit rarely", "honest"):
            ground: Any = SimpleNamespace(direct=kafka)
            running[cheat] = trial = stack.enter_context(Trial(ground, 0, cheat, plan, lambda _text: None))
            trial.prepare(1, cheat=cheat)
        for trial in running.values():
            trial.until_done(0.9)
            trial.kill(trial.live[0])
            trial.worker()
        for cheat, trial in running.items():
            trial.finish()
            problems[cheat] = trial.result.problems
    assert problems["honest"] == ""
    assert "duplicates are more than" in problems["commit rarely"]
