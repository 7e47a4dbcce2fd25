"""Places of one process, shared out between the boards of its partitions: limits hold over all of them, and none starves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.sharing import Sharing, parts_of
from pipeline.model.job_policies import JobPolicy, QueuePolicy
from pipeline.model.jobs import Completed, JobRequest
from tests.property.board_world import Pickled

TYPES = {"limited": JobPolicy(concurrency=3), "tight": JobPolicy(concurrency=1), "free": JobPolicy()}


def board(careful: bool = False) -> Board:
    made = Board(QueuePolicy(), TYPES, Pickled())
    made.careful = careful
    return made


def fill(target: Board, **counts: int) -> None:
    requests = [JobRequest(f"{name}-{target.number}-{n}", name) for name, count in counts.items() for n in range(count)]
    target.admit(enumerate(requests, target.number), 0)
    target.effects()


def end(pairs: list[tuple[Board, Job]]) -> None:
    for where, job in pairs:
        where.ended([(job, job.version, Completed())], 0)
        where.effects()


@pytest.mark.parametrize(
    ("free", "wanted", "parts"),
    [
        (10, [3, 100, 4], [3, 4, 3]),
        (2, [5, 5, 5], [1, 1, 0]),
        (0, [1, 1], [0, 0]),
        (-3, [1], [0]),
        (100, [1, 2], [1, 2]),
        (7, [0, 9, 1], [0, 6, 1]),
        (5, [], []),
    ],
)
def test_parts_are_equal_and_none_is_larger_than_what_is_wanted(free: int, wanted: list[int], parts: list[int]) -> None:
    assert parts_of(free, wanted) == parts


@pytest.mark.parametrize("seed", range(30))
def test_parts_leave_nothing_over_that_somebody_wants(seed: int) -> None:
    drawn = random.Random(seed)
    wanted = [drawn.randrange(20) for _ in range(drawn.randrange(1, 9))]
    free = drawn.randrange(80)
    parts = parts_of(free, wanted)
    assert sum(parts) == min(free, sum(wanted))
    assert all(part <= want for part, want in zip(parts, wanted, strict=True))
    short = [part for part, want in zip(parts, wanted, strict=True) if part < want]
    assert not short or max(parts) <= max(short) + 1


def test_d1_a_types_limit_holds_over_all_boards_of_a_process() -> None:
    boards, sharing = [board() for _ in range(4)], Sharing()
    for each in boards:
        fill(each, limited=10, free=2)
    running = sharing.take(boards, boards, 100, {}, 0)
    assert Counter(job.kind.name for _, job in running) == {"limited": 3, "free": 8}
    assert sharing.take(boards, boards, 100, {}, 0) == []
    limited = [pair for pair in running if pair[1].kind.name == "limited"]
    end(limited[:2])
    assert len(sharing.take(boards, boards, 100, {"limited": 1}, 0)) == 1, "one runs on elsewhere"
    assert len(sharing.take(boards, boards, 100, {}, 0)) == 1


def test_what_runs_on_a_board_that_drains_counts() -> None:
    boards, sharing = [board(), board()], Sharing()
    fill(boards[0], limited=2)
    running = sharing.take(boards, boards, 100, {}, 0)
    fill(boards[1], limited=9)
    assert len(running) == 2
    assert len(sharing.take(boards, boards[1:], 100, {}, 0)) == 1


@pytest.mark.parametrize("type_name", ["tight", "free"])
def test_boards_take_turns_at_a_place_that_all_want(type_name: str) -> None:
    boards, sharing, turns = [board() for _ in range(3)], Sharing(), list[int]()
    for each in boards:
        fill(each, **{type_name: 50})
    for _ in range(60):
        started = sharing.take(boards, boards, 1 if type_name == "free" else 10, {}, 0)
        assert len(started) == 1
        turns.append(boards.index(started[0][0]))
        end(started)
    assert max(Counter(turns).values()) == 20
    assert all(len(set(turns[at : at + 3])) == 3 for at in range(0, 60, 3))


def test_a_place_of_one_type_is_no_turn_for_another() -> None:
    """Two types that end by turns: a board that just started one is not passed over for the other again and again."""
    boards, sharing = [board(), board()], Sharing()
    for each in boards:
        fill(each, tight=40, limited=40)
    running, served = sharing.take(boards, boards, 4, {}, 0), Counter[tuple[str, int]]()
    for turn in range(60):
        name = ("tight", "limited")[turn % 2]
        ending = next(pair for pair in running if pair[1].kind.name == name)
        running.remove(ending)
        end([ending])
        started = sharing.take(boards, boards, 1, {}, 0)
        assert [job.kind.name for _, job in started] == [name]
        served[name, boards.index(started[0][0])] += 1
        running += started
    assert all(12 <= served[name, at] <= 18 for name in ("tight", "limited") for at in (0, 1)), served


def test_a_board_that_has_little_leaves_its_part_to_the_others() -> None:
    boards, sharing = [board(), board()], Sharing()
    fill(boards[0], free=2)
    fill(boards[1], free=50)
    assert Counter(boards.index(each) for each, _ in sharing.take(boards, boards, 20, {}, 0)) == {0: 2, 1: 18}
    fill(boards[0], limited=50)
    fill(boards[0], free=5)
    started = sharing.take(boards, boards, 40, {}, 0)
    assert Counter((boards.index(each), job.kind.name) for each, job in started) == {
        (0, "limited"): 3, (0, "free"): 5, (1, "free"): 32,
    }  # fmt: skip


def test_careful_boards_keep_the_places_of_those_that_wait_to_be_written() -> None:
    boards, sharing = [board(careful=True), board()], Sharing()
    fill(boards[0], free=4)
    assert sharing.take(boards, boards, 3, {}, 0) == []
    fill(boards[1], free=4)
    assert sharing.take(boards, boards, 3, {}, 0) == [], "all three wait for their entries"
    entries = [effect for effect in boards[0].effects() if getattr(effect, "gate", None) is not None]
    boards[0].stored(entries[0])  # type: ignore[arg-type]
    (started,) = sharing.take(boards, boards, 3, {}, 0)
    assert started[0] is boards[0]
    assert sharing.take(boards, boards, 2, {}, 0) == [], "two places are kept"
    for entry in entries[1:]:
        boards[0].stored(entry)  # type: ignore[arg-type]
    assert [where for where, _ in sharing.take(boards, boards, 2, {}, 0)] == [boards[0]] * 2
    end([started])
    assert [where for where, _ in sharing.take(boards, boards, 1, {}, 0)] == [boards[1]]
