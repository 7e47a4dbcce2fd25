"""Jobs as Avro and back: requests and commands on a queue's inbox, entries in its store. Nothing here waits but `prepare`.

An entry is made for each write and opened for each job that waited, so values are put into place by hand: written as rows, in the
contract's order (tests compare it), and read by place. Texts that many jobs share come out as one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from sys import intern
from typing import Any, Final

from pipeline.codec.avro import AvroCodec
from pipeline.model.cron import Misfire
from pipeline.model.errors import ConfigurationError, UndecodableError
from pipeline.model.job_states import JobState
from pipeline.model.jobs import (
    NOTHING_YET,
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

Fields = dict[str, Any]
Row = tuple[Any, ...]

REQUEST, COMMAND = "agent.jobs.JobRequest", "agent.jobs.JobCommand"
RECORD, DUPLICATE = "agent.jobs.JobRecord", "agent.jobs.JobDuplicate"
WINDOW, SCHEDULE = "agent.jobs.JobDedupWindow", "agent.jobs.JobScheduleRecord"
INBOX_RECORDS: Final = (REQUEST, COMMAND)
STORE_RECORDS: Final = (RECORD, DUPLICATE, WINDOW, SCHEDULE)

_STATES: Final = {state.name: state for state in JobState}
_KINDS: Final = {kind.name: kind for kind in FailureKind}
_MISFIRES: Final = {misfire.name: misfire for misfire in Misfire}


class InboxCodec:
    """What callers write to a queue's inbox. `topic` is its real name."""

    def __init__(self, codec: AvroCodec, topic: str) -> None:
        self._codec = codec
        self._topic = topic

    def prepare(self) -> list[str]:
        """Look up the contracts; gives those that the registry lacks. May wait. Raises SchemaUnavailable."""
        return self._codec.prepare(self._topic, INBOX_RECORDS)

    def request(self, request: JobRequest) -> bytes:
        return self._codec.encode_row(_request_row(request), topic=self._topic, record_name=REQUEST)

    def command(self, command: JobCommand) -> bytes:
        return self._codec.encode_row(_command_row(command), topic=self._topic, record_name=COMMAND)

    def read(self, value: bytes | None, written_ms: int) -> JobRequest | JobCommand:
        """A record of the inbox; a request counts from when it was `written_ms`.

        Raises UndecodableError for what is neither, SchemaUnavailable for a schema that is to be fetched first.
        """
        name, fields = self._codec.decode_dict(self._topic, value)
        if name == REQUEST:
            fields["created_ms"] = written_ms
            return _request(fields)
        if name == COMMAND:
            return _command(fields)
        raise UndecodableError(
            f"A record {name} on {self._topic} is neither a job nor a command: publish it elsewhere."
        )


class StoreCodec:
    """The entries of a queue's store (`core.jobs.entries.Packing`). `topic` is the real name of its state topic."""

    def __init__(self, codec: AvroCodec, topic: str) -> None:
        self._codec = codec
        self._topic = topic

    def prepare(self) -> list[str]:
        """As of `InboxCodec`."""
        return self._codec.prepare(self._topic, STORE_RECORDS)

    def pack(self, entry: JobEntry) -> bytes:
        name, row = _entry_row(entry)
        return self._codec.encode_row(row, topic=self._topic, record_name=name)

    def unpack(self, key: bytes, packed: bytes) -> JobEntry:
        """Raises UndecodableError, or SchemaUnavailable for a schema that is to be fetched first."""
        name, fields = self._codec.decode_dict(self._topic, packed)
        if name == RECORD:
            return _record(fields)
        if name == DUPLICATE:
            fields["type"] = intern(fields["type"])
            return JobDuplicate(**fields)
        if name == WINDOW:
            fields["type"] = intern(fields["type"])
            return DedupWindow(**fields)
        if name == SCHEDULE:
            return ScheduleRecord(_schedule(fields.pop("schedule")), **fields)
        raise UndecodableError(f"Entry {key!r} of {self._topic} is a {name}, which no queue writes: another tool did.")


def prepare_queue(codec: AvroCodec, inbox: str, state: str) -> None:
    """Look up the contracts of both topics. May wait. Raises SchemaUnavailable, or ConfigurationError for what is missing."""
    for topic, missing in ((inbox, InboxCodec(codec, inbox).prepare()), (state, StoreCodec(codec, state).prepare())):
        if missing:
            records = " ".join(f"--record {name.rpartition('.')[2]}" for name in missing)
            raise ConfigurationError(
                f"topic {topic}: {', '.join(missing)} not registered: run `pipeline schemas register {topic} {records}`"
            )


# -- requests


def _request_row(request: JobRequest) -> Row:
    backoff = request.backoff
    if backoff is None:
        return request
    return request._replace(backoff=(backoff.delay_ms, backoff.factor, backoff.max_delay_ms))  # type: ignore[arg-type]


def _request(fields: Mapping[str, Any]) -> JobRequest:
    """By place: the fields stand in the contract's order, which is that of the class (a test compares them)."""
    values = list(fields.values())
    values[1], values[6] = intern(values[1]), intern(values[6])
    if values[12] is not None:
        values[12] = Backoff(**values[12])
    values[16] = tuple(values[16])
    return JobRequest._make(values)


# -- entries


def _entry_row(entry: JobEntry) -> tuple[str, Row]:
    """The name of its contract, and its values."""
    if isinstance(entry, JobRecord):
        return RECORD, _record_row(entry)
    if isinstance(entry, JobDuplicate):
        return DUPLICATE, (entry.id, entry.type, entry.of, entry.at_ms, entry.offset)
    if isinstance(entry, DedupWindow):
        return WINDOW, (entry.type, entry.dedup_id, entry.job_id, entry.from_ms, entry.until_ms)
    return SCHEDULE, (_schedule_row(entry.schedule), entry.next_ms, entry.last_ms, entry.paused, entry.offset)


def _record_row(record: JobRecord) -> Row:
    outcome = record.outcome
    told = None if outcome is NOTHING_YET or outcome == NOTHING_YET else _outcome_row(outcome)
    return (_request_row(record.request), record.state._name_, *record[2:13], told, *record[14:])


def _record(fields: Fields) -> JobRecord:
    values = list(fields.values())
    values[0] = _request(values[0])
    state = _STATES.get(values[1])
    if state is None:
        raise UndecodableError(f"Job {values[0].id} is in a state that this build does not know: update it.")
    values[1] = state
    values[13] = NOTHING_YET if values[13] is None else _outcome(values[13])
    return JobRecord._make(values)


def _outcome_row(outcome: JobOutcome) -> Row:
    error, progress = outcome.error, outcome.progress
    if error is None and progress is None:
        return outcome
    told = progress and (progress.processed, progress.total, progress.note, progress.log, progress.at_ms)
    return (error and _error_row(error), *outcome[1:6], told)


def _outcome(fields: Fields) -> JobOutcome:
    error, progress = fields["error"], fields["progress"]
    fields["error"] = None if error is None else _error(error)
    fields["progress"] = None if progress is None else JobProgress(**progress)
    return JobOutcome(**fields)


def _error_row(error: Failure) -> Row:
    kind = error.kind.name
    texts = (error.error_class, error.error_type, error.message, error.stack)
    return (kind, *texts, error.started_ms, error.log, error.scrubbed)


def _error(fields: Fields) -> Failure:
    """`after_ms` is not kept: the time of the retry is in the record."""
    fields["kind"] = _KINDS.get(fields["kind"], FailureKind.TERMINAL)
    return Failure(**fields)


# -- schedules


def _schedule_row(schedule: Schedule) -> Row:
    return (schedule.name, schedule.cron, _request_row(schedule.request), schedule.zone, schedule.misfire.name)


def _schedule(fields: Fields) -> Schedule:
    misfire = _MISFIRES.get(fields["misfire"], Misfire.ONCE)
    return Schedule(fields["name"], fields["cron"], _request(fields["request"]), fields["zone"], misfire)


# -- commands


def _command_row(command: JobCommand) -> Row:
    """Kind, name, reason, at_ms, schedule."""
    if isinstance(command, CancelJob):
        return ("CANCEL", command.job_id, command.reason, 0, None)
    if isinstance(command, RetryJob):
        return ("RETRY", command.job_id, "", 0, None)
    if isinstance(command, RunJobNow):
        return ("RUN_NOW", command.job_id, "", 0, None)
    if isinstance(command, PutSchedule):
        return ("PUT_SCHEDULE", command.schedule.name, "", 0, _schedule_row(command.schedule))
    if isinstance(command, DropSchedule):
        return ("DROP_SCHEDULE", command.name, "", 0, None)
    if isinstance(command, PauseSchedule):
        return ("PAUSE_SCHEDULE" if command.paused else "RESUME_SCHEDULE", command.name, "", 0, None)
    return ("RUN_SCHEDULE_NOW", command.name, "", command.at_ms, None)


def _command(fields: Fields) -> JobCommand:
    kind, name = fields["kind"], fields["name"]
    if kind == "CANCEL":
        return CancelJob(name, fields["reason"])
    if kind == "PUT_SCHEDULE" and fields["schedule"] is not None:
        return PutSchedule(_schedule(fields["schedule"]))
    if kind in ("PAUSE_SCHEDULE", "RESUME_SCHEDULE"):
        return PauseSchedule(name, kind == "PAUSE_SCHEDULE")
    if kind == "RUN_SCHEDULE_NOW":
        return RunScheduleNow(name, fields["at_ms"])
    plain: dict[str, type[RetryJob | RunJobNow | DropSchedule]] = {
        "RETRY": RetryJob,
        "RUN_NOW": RunJobNow,
        "DROP_SCHEDULE": DropSchedule,
    }
    if kind not in plain:
        raise UndecodableError(f"A command for {name!r} is of a kind that this build does not know: update it.")
    return plain[kind](name)
