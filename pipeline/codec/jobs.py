"""Jobs as Avro and back: requests and commands on a queue's inbox, entries in its store. Nothing here waits but `prepare`.

An entry is made for each write and opened for each job that waited, so fields are put into place by hand. Texts that many
jobs share come out as one object.
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

REQUEST, COMMAND = "agent.jobs.JobRequest", "agent.jobs.JobCommand"
RECORD, DUPLICATE = "agent.jobs.JobRecord", "agent.jobs.JobDuplicate"
WINDOW, SCHEDULE = "agent.jobs.JobDedupWindow", "agent.jobs.JobScheduleRecord"
INBOX_RECORDS: Final = (REQUEST, COMMAND)
STORE_RECORDS: Final = (RECORD, DUPLICATE, WINDOW, SCHEDULE)

_REQUEST_FIELDS: Final = JobRequest._fields
_RECORD_FIELDS: Final = JobRecord._fields
"""In the contract's order (a test compares them)."""
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
        return self._codec.encode(_request_fields(request), topic=self._topic, record_name=REQUEST)

    def command(self, command: JobCommand) -> bytes:
        return self._codec.encode(_command_fields(command), topic=self._topic, record_name=COMMAND)

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
        if isinstance(entry, JobRecord):
            name, fields = RECORD, _record_fields(entry)
        elif isinstance(entry, JobDuplicate):
            name, fields = DUPLICATE, {part: getattr(entry, part) for part in entry.__slots__}
        elif isinstance(entry, DedupWindow):
            name, fields = WINDOW, {part: getattr(entry, part) for part in entry.__slots__}
        else:
            name, fields = SCHEDULE, _schedule_record_fields(entry)
        return self._codec.encode(fields, topic=self._topic, record_name=name)

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
            raise ConfigurationError(
                f"topic {topic}: {', '.join(missing)} not registered: run `pipeline schemas register` for it"
            )


# -- requests


def _request_fields(request: JobRequest) -> Fields:
    fields: Fields = dict(zip(_REQUEST_FIELDS, request, strict=True))
    if (backoff := request.backoff) is not None:
        fields["backoff"] = {part: getattr(backoff, part) for part in backoff.__slots__}
    return fields


def _request(fields: Mapping[str, Any]) -> JobRequest:
    """By place: the fields stand in the contract's order, which is that of the class (a test compares them)."""
    values = list(fields.values())
    values[1], values[6] = intern(values[1]), intern(values[6])
    if values[12] is not None:
        values[12] = Backoff(**values[12])
    values[16] = tuple(values[16])
    return JobRequest._make(values)


# -- entries


def _record_fields(record: JobRecord) -> Fields:
    fields: Fields = dict(zip(_RECORD_FIELDS, record, strict=True))
    fields["request"] = _request_fields(record.request)
    fields["state"] = record.state.name
    outcome = record.outcome
    fields["outcome"] = None if outcome is NOTHING_YET or outcome == NOTHING_YET else _outcome_fields(outcome)
    return fields


def _record(fields: Fields) -> JobRecord:
    values = list(fields.values())
    values[0] = _request(values[0])
    state = _STATES.get(values[1])
    if state is None:
        raise UndecodableError(f"Job {values[0].id} is in a state that this build does not know: update it.")
    values[1] = state
    values[13] = NOTHING_YET if values[13] is None else _outcome(values[13])
    return JobRecord._make(values)


def _outcome_fields(outcome: JobOutcome) -> Fields:
    fields: Fields = outcome._asdict()
    if (error := outcome.error) is not None:
        fields["error"] = _error_fields(error)
    if (progress := outcome.progress) is not None:
        fields["progress"] = {part: getattr(progress, part) for part in progress.__slots__}
    return fields


def _outcome(fields: Fields) -> JobOutcome:
    error, progress = fields["error"], fields["progress"]
    fields["error"] = None if error is None else _error(error)
    fields["progress"] = None if progress is None else JobProgress(**progress)
    return JobOutcome(**fields)


def _error_fields(error: Failure) -> Fields:
    return {
        "kind": error.kind.name,
        "error_class": error.error_class,
        "error_type": error.error_type,
        "message": error.message,
        "stack": error.stack,
        "started_ms": error.started_ms,
        "log": error.log,
        "scrubbed": error.scrubbed,
    }


def _error(fields: Fields) -> Failure:
    """`after_ms` is not kept: the time of the retry is in the record."""
    fields["kind"] = _KINDS.get(fields["kind"], FailureKind.TERMINAL)
    return Failure(**fields)


# -- schedules


def _schedule_fields(schedule: Schedule) -> Fields:
    return {
        "name": schedule.name,
        "cron": schedule.cron,
        "request": _request_fields(schedule.request),
        "zone": schedule.zone,
        "misfire": schedule.misfire.name,
    }


def _schedule(fields: Fields) -> Schedule:
    misfire = _MISFIRES.get(fields["misfire"], Misfire.ONCE)
    return Schedule(fields["name"], fields["cron"], _request(fields["request"]), fields["zone"], misfire)


def _schedule_record_fields(record: ScheduleRecord) -> Fields:
    return {
        "schedule": _schedule_fields(record.schedule),
        "next_ms": record.next_ms,
        "last_ms": record.last_ms,
        "paused": record.paused,
        "offset": record.offset,
    }


# -- commands


def _command_fields(command: JobCommand) -> Fields:
    if isinstance(command, CancelJob):
        return {"kind": "CANCEL", "name": command.job_id, "reason": command.reason}
    if isinstance(command, RetryJob):
        return {"kind": "RETRY", "name": command.job_id}
    if isinstance(command, RunJobNow):
        return {"kind": "RUN_NOW", "name": command.job_id}
    if isinstance(command, PutSchedule):
        schedule = command.schedule
        return {"kind": "PUT_SCHEDULE", "name": schedule.name, "schedule": _schedule_fields(schedule)}
    if isinstance(command, DropSchedule):
        return {"kind": "DROP_SCHEDULE", "name": command.name}
    if isinstance(command, PauseSchedule):
        return {"kind": "PAUSE_SCHEDULE" if command.paused else "RESUME_SCHEDULE", "name": command.name}
    return {"kind": "RUN_SCHEDULE_NOW", "name": command.name, "at_ms": command.at_ms}


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
