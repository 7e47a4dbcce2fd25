"""What a board wants written, and what else it asks of its owner, as data, in the order in which it must be done.

Everything of one partition is written in this order, so that what survives a crash is a beginning of it. Record keys:

    j/JOB-ID               a job, or the answer that it is a duplicate
    d/TYPE/DEDUP-ID        a dedup window (`%` and `/` in the type as %25 and %2F)
    s/SCHEDULE             a schedule
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

    With `gate` a job waits for the acknowledgement: tell `Board.stored`.
    """

    key: bytes
    value: bytes | None
    settles: int = -1
    gate: Job | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """An offset of the inbox that is settled once every entry before this is acknowledged."""

    offset: int


@dataclass(frozen=True, slots=True)
class Letter:
    """Write this job to the dead letters, behind its entry; answer with `Board.lettered`."""

    record: JobRecord


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The job was cancelled while this version of it runs: its handler should stop. Its ending is told as any other."""

    job: Job
    version: int


Effect = Entry | Settle | Letter | Interrupt


def job_key(job_id: str) -> bytes:
    return f"j/{job_id}".encode()


def dedup_key(type_name: str, dedup_id: str) -> bytes:
    return f"d/{type_name.replace('%', '%25').replace('/', '%2F')}/{dedup_id}".encode()


def dedup_of(name: str) -> tuple[str, str]:
    """Type and dedup id, from what stands behind `d/`."""
    type_name, _, dedup_id = name.partition("/")
    return type_name.replace("%2F", "/").replace("%25", "%"), dedup_id


def schedule_key(name: str) -> bytes:
    return f"s/{name}".encode()
