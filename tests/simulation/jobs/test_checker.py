"""The checker of jobs, told histories that were written by hand: who may go first, and who again."""

from __future__ import annotations

import pytest

from pipeline.codec.jobs import InboxCodec, StoreCodec
from pipeline.core.progress import Progress, encode
from pipeline.model.jobs import JobDuplicate, JobOutcome, JobRecord, JobRequest, JobState
from tests.simulation.facts import Fact, JobBegan, Landed, Stored
from tests.simulation.jobs.checker import JobChecker
from tests.simulation.jobs.fleet import codec
from tests.simulation.jobs.scenario import INBOX, STORE, Asked, JobScenario

JOBS = [JobRequest(f"job-{offset}", "steady", b"%d" % offset, tenant="a") for offset in range(3)]


def asked(offset: int, request: JobRequest, at_ms: int = 0) -> Fact:
    inbox = InboxCodec(codec(), INBOX)
    inbox.prepare()
    return Landed(at_ms, (INBOX, 0, offset), None, inbox.request(request), [])


def written(at: int, offset: int, what: JobRecord | JobDuplicate | None) -> Fact:
    store = StoreCodec(codec(), STORE)
    store.prepare()
    packed = None if what is None else store.pack(what)
    return Landed(0, (STORE, 0, at), f"j/job-{offset}".encode(), packed, [("pl.epoch", b"1")])


def entry(at: int, offset: int, state: JobState, started_ms: int = 0) -> Fact:
    outcome = JobOutcome(result=b"1")
    record = JobRecord(JOBS[offset], state, number=offset, offset=offset, started_ms=started_ms, outcome=outcome)
    return written(at, offset, record)


def claim(epoch: int, fence: int) -> Fact:
    return Stored(0, (INBOX, 0), 0, encode(Progress(0, 0, (), epoch, {"state": fence})))


def began(number: int, offset: int, epoch: int) -> Fact:
    return JobBegan(0, number, "w", 0, epoch, f"job-{offset}", 1, 0)


def commit(offset: int) -> Fact:
    return Stored(0, (INBOX, 0), offset, encode(Progress(offset, offset, (), 1, {"state": 0})))


def problems(*facts: Fact, inbox: list[Fact] | None = None) -> list[str]:
    scenario = JobScenario(0, asked=tuple(Asked(number, 0, "steady") for number in range(len(JOBS))))
    inbox = inbox or [asked(offset, request) for offset, request in enumerate(JOBS)]
    return JobChecker(scenario).check([claim(1, 0), *inbox, *facts])


def out_of_turn(*facts: Fact) -> list[str]:
    return [told for told in problems(*facts) if told.startswith("J8")]


def test_one_that_overtakes_another_of_its_tenant_is_seen() -> None:
    assert len(out_of_turn(began(1, 1, epoch=1))) == 1
    assert not out_of_turn(began(1, 0, epoch=1), began(2, 1, epoch=1))


@pytest.mark.parametrize(
    ("state", "started_ms", "first"),
    [
        (JobState.RUNNING, 5, True),
        (JobState.RETRYING, 5, True),
        (JobState.QUEUED, 5, True),
        (JobState.QUEUED, 0, False),
    ],
)
def test_what_the_store_says_has_begun_goes_first_whoever_owns_it(
    state: JobState, started_ms: int, first: bool
) -> None:
    """The worker died before it called the handler, as in seed 56223: no owner can know that."""
    facts = [entry(0, 1, state, started_ms), claim(2, fence=1), began(1, 1, epoch=2)]
    assert (not out_of_turn(*facts)) is first


def test_who_had_begun_excuses_no_other() -> None:
    facts = [entry(0, 1, JobState.RUNNING, 5), claim(2, fence=1), began(1, 1, epoch=2), began(2, 2, epoch=2)]
    assert len(out_of_turn(*facts)) == 1


@pytest.mark.parametrize("overtaken", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_a_job_that_is_forgotten_may_come_back_only_by_a_commit_that_landed_late(overtaken: bool, gone: bool) -> None:
    """As in seed 67375."""
    facts = [began(1, 0, epoch=1), entry(0, 0, JobState.COMPLETED, 5)]
    facts += [written(1, 0, None)] if gone else []
    facts += [commit(2), commit(1)] if overtaken else [commit(1), commit(2)]
    told = problems(*facts, claim(2, fence=2), began(2, 0, epoch=2))
    assert any("began after it was COMPLETED" in each for each in told) is not (overtaken and gone)


def same_work(*windows: tuple[int, int]) -> list[Fact]:
    """Requests of one dedup id: when they got into the inbox, and for how long their windows last."""
    return [
        asked(offset, JOBS[offset]._replace(dedup_id="d", dedup_window_ms=window_ms), at_ms)
        for offset, (at_ms, window_ms) in enumerate(windows)
    ]


@pytest.mark.parametrize(
    ("second", "third_ms", "of", "wrong"),
    [
        ((800, 60_000), 3_000, 1, False),  # as in seed 71715
        ((800, 60_000), 3_000, 0, True),  # the window of the first was over
        ((800, 60_000), 1_200, 1, True),  # it was not
        ((800, 500), 3_000, 1, True),  # nor does one count that was over
        ((1_500, 60_000), 3_000, 1, False),  # no clock was put back
    ],
)
def test_a_window_from_before_the_one_that_was_known_may_count_when_that_is_over(
    second: tuple[int, int], third_ms: int, of: int, wrong: bool
) -> None:
    duplicate = written(0, 2, JobDuplicate("job-2", "steady", f"job-{of}", 0, 2))
    told = problems(duplicate, inbox=same_work((1_000, 400), second, (third_ms, 400)))
    assert any(each.startswith("J2") for each in told) is wrong
