"""What a board wants written, and what else it asks of its owner, as data, in the order in which it must be done.

Everything of one partition is written in this order, so that what survives a crash is a beginning of it. Record keys are
those of `model.store_keys`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.core.jobs.job import Job
from pipeline.model.jobs import JobEntry, JobRecord


class Packing(Protocol):
    """Entries as bytes and back. Pure. Texts that many jobs share (types, tenants) should come out as one object."""

    def pack(self, entry: JobEntry) -> bytes: ...

    def unpack(self, key: bytes, packed: bytes) -> JobEntry: ...


class Entry(NamedTuple):
    """Write this to the store (None: a tombstone). Once it is acknowledged the inbox's offset `settles` is settled (-1: none).

    With `gate` a job waits for the acknowledgement: tell `Board.stored`. `again`: the store has it, further up (see `sweeping`).
    """

    key: bytes
    value: bytes | None
    settles: int = -1
    gate: Job | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """An offset of the inbox that is settled once every entry before this is acknowledged."""

    offset: int


@dataclass(frozen=True, slots=True)
class Letter:
    """Write this job to the dead letters, behind its entry; answer with `Board.lettered`. `offset`: where it is, once that is known."""

    record: JobRecord
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The job was cancelled while this version of it runs: its handler should stop. Its ending is told as any other."""

    job: Job
    version: int


@dataclass(frozen=True, slots=True)
class DropBlobs:
    """Delete these once every entry before this is acknowledged: nothing refers to them any more."""

    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeliveryWritten:
    """The webhook's delivery of this job's ending is in the store once every entry before this is acknowledged: answer with
    `delivering.written`."""

    job_id: str
    version: int


Effect = Entry | Settle | Letter | Interrupt | DropBlobs | DeliveryWritten
