"""Large inputs and results of jobs lie outside the topics, in a blob store; a record has a reference, which says who deletes it.

queue:NAME     deleted by the job's queue, when it forgets the job
kept:NAME      not deleted by the pipeline: whoever runs the store does, by a rule of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import quote

from pipeline.model.errors import BlobError

BlobOwner = Literal["queue", "kept"]


class BlobStore(Protocol):
    """Bytes by name, kept until they are deleted. Names are paths of plain characters. Calls may wait, and come from any thread.

    Raises BlobMissing for a name that is not there (`delete` does not), BlobError for what may heal.
    """

    def put(self, name: str, data: bytes) -> None:
        """All of it or nothing; what was there under the name is gone."""

    def get(self, name: str) -> bytes: ...

    def delete(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class BlobPolicy:
    """What has more than `inline_bytes` goes to the store; what has more than `most_bytes` is refused."""

    inline_bytes: int = 100_000
    most_bytes: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Blobs:
    """A store and how it is used. Calls may wait."""

    store: BlobStore
    policy: BlobPolicy = BlobPolicy()

    def put(self, owner: BlobOwner, name: str, data: bytes) -> str:
        """Gives the reference."""
        self.store.put(name, data)
        return f"{owner}:{name}"

    def get(self, ref: str) -> bytes:
        return self.store.get(name_of(ref))

    def delete(self, ref: str) -> None:
        self.store.delete(name_of(ref))


def name_of(ref: str) -> str:
    """Raises BlobError for what is no reference."""
    owner, colon, name = ref.partition(":")
    if not colon or owner not in ("queue", "kept") or not name:
        raise BlobError(f"{ref!r:.200} is no reference to a blob: it begins with queue: or kept:")
    return name


def is_queues(ref: str | None) -> bool:
    """Does the job's queue delete it?"""
    return ref is not None and ref.startswith("queue:")


def blob_name(queue: str, job_id: str, what: str) -> str:
    """Of a job's input or result, whatever its id is made of."""
    return "/".join(quote(part, safe="@") for part in (queue, job_id, what))
