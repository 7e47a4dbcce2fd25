"""Jobs as Avro: what goes in comes out, in the contracts' order, small, and as one object where many jobs share a text."""

from __future__ import annotations

import pytest

from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.jobs import INBOX_RECORDS, RECORD, REQUEST, STORE_RECORDS, InboxCodec, StoreCodec
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.core.jobs.entries import Packing
from pipeline.model.cron import Misfire
from pipeline.model.errors import EncodeError, SchemaUnavailable, UndecodableError
from pipeline.model.job_states import JobState
from pipeline.model.jobs import (
    CancelJob,
    DedupWindow,
    DropSchedule,
    JobCommand,
    JobDuplicate,
    JobEntry,
    JobOutcome,
    JobProgress,
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
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import Backoff

REQUESTED = JobRequest(
    "0198-x", "classify", b'{"ticket":1}', "ref", 7, "ticket-7", "acme", "flow", -3, 8, 9, 4, Backoff(5, 1.5, 50), 11,
    "dedup", 12, ("a", "é"), "00-trace", "nightly",
)  # fmt: skip
PLAIN = JobRequest("0198-y", "classify")
FAILED = Failure(FailureKind.TIMED_OUT, "Timeout", "TimeoutError", "slow", "stack", None, 3, "log", True)
TOLD = JobOutcome(FAILED, b"history", "warning", "reason", b"result", "ref", JobProgress(3, 9))
SCHEDULED = Schedule("nightly", "0 3 * * *", PLAIN, "Europe/Zurich", Misfire.ALL)
ENTRIES: list[JobEntry] = [
    JobRecord(REQUESTED, JobState.RETRYING, 1, 2, 3, 4, 5, 6, 7, 8, 9, True, True, TOLD),
    JobRecord(PLAIN, JobState.QUEUED),
    *(JobRecord(PLAIN, state) for state in JobState),
    JobDuplicate("b", "classify", "a", 5, 6),
    DedupWindow("classify", "d", "a", 1, 2),
    ScheduleRecord(SCHEDULED, 5, 4, True, 3),
]
COMMANDS: list[JobCommand] = [
    CancelJob("a", "why"), RetryJob("a"), RunJobNow("a"), PutSchedule(SCHEDULED), DropSchedule("s"),
    PauseSchedule("s"), PauseSchedule("s", paused=False), RunScheduleNow("s", 5),
]  # fmt: skip


@pytest.fixture
def codec() -> AvroCodec:
    return AvroCodec(LocalRegistry(MemorySchemaLog(), product_catalogue()))


@pytest.fixture
def inbox(codec: AvroCodec) -> InboxCodec:
    made = InboxCodec(codec, "jobs.q")
    assert made.prepare() == []
    return made


@pytest.fixture
def store(codec: AvroCodec) -> StoreCodec:
    made = StoreCodec(codec, "jobs.q.q.state")
    assert made.prepare() == []
    return made


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
def test_an_entry_comes_back_as_it_was(store: StoreCodec, entry: JobEntry) -> None:
    packing: Packing = store
    assert packing.unpack(b"k", packing.pack(entry)) == entry


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_a_command_comes_back_as_it_was(inbox: InboxCodec, command: JobCommand) -> None:
    assert inbox.read(inbox.command(command), 5) == command


def test_a_request_counts_from_when_it_was_written(inbox: InboxCodec) -> None:
    found = inbox.read(inbox.request(REQUESTED), 55)
    assert isinstance(found, JobRequest)
    assert found.created_ms == 55
    assert found == REQUESTED._replace(created_ms=55)


def test_what_is_not_a_job_is_refused_and_not_guessed(inbox: InboxCodec, store: StoreCodec) -> None:
    for value in (None, b"", b"{}", b"\x00"):
        with pytest.raises(UndecodableError):
            inbox.read(value, 0)
    with pytest.raises(SchemaUnavailable):
        inbox.read(b"\x00\x00\x00\x03\xe8body", 0)
    good = inbox.request(PLAIN)
    with pytest.raises(UndecodableError):
        inbox.read(good[:-1], 0)


def test_classes_and_contracts_have_the_same_fields_in_the_same_order() -> None:
    present = product_catalogue().present
    in_order = {name: [field["name"] for field in present[name].node["fields"]] for name in present}
    assert in_order[REQUEST] == list(JobRequest._fields)
    assert in_order[RECORD] == list(JobRecord._fields)
    for name in (*INBOX_RECORDS, *STORE_RECORDS):
        assert present[name].compatibility == "BACKWARD_TRANSITIVE"


def test_a_request_has_one_contract_wherever_it_stands() -> None:
    present = product_catalogue().present
    alone = present[REQUEST].node["fields"]
    for name in (*INBOX_RECORDS, *STORE_RECORDS):
        inside = present[name].named.get(REQUEST)
        assert inside is None or inside["fields"] == alone, name


def test_texts_that_many_jobs_share_are_one_object(store: StoreCodec) -> None:
    one, other = (store.unpack(b"k", store.pack(JobRecord(REQUESTED, JobState.QUEUED))) for _ in range(2))
    assert isinstance(one, JobRecord)
    assert isinstance(other, JobRecord)
    assert one.request.type is other.request.type
    assert one.request.tenant is other.request.tenant


def test_a_small_job_is_a_small_entry(store: StoreCodec) -> None:
    plain = JobRequest("0" * 36, "classify", b"x" * 100, created_ms=1 << 40)
    assert len(store.pack(JobRecord(plain, JobState.COMPLETED, 2, 5, 1, 0, 1 << 40, 0, 1 << 40, 1 << 40, 77))) < 250


def test_what_does_not_fit_is_told_by_its_field(store: StoreCodec) -> None:
    asked = JobRequest("a", "t", tenant="\ud800")
    with pytest.raises(EncodeError, match=r"JobRecord\.request"):
        store.pack(JobRecord(asked, JobState.QUEUED))
    with pytest.raises(EncodeError, match=r"JobRecord\.number"):
        store.pack(JobRecord(JobRequest("a", "t"), JobState.QUEUED, number=1 << 80))


def test_a_topic_that_was_not_prepared_takes_no_row() -> None:
    codec = AvroCodec(LocalRegistry(MemorySchemaLog(), product_catalogue()))
    with pytest.raises(EncodeError, match=r"JobRequest is not registered for topic jobs\.q"):
        InboxCodec(codec, "jobs.q").request(PLAIN)
