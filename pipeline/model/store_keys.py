"""Record keys of a queue's store, said once for those who write, read and repair it.

j/JOB-ID               a job, or the answer that it is a duplicate
d/TYPE/DEDUP-ID        a dedup window (`%` and `/` in the type as %25 and %2F)
s/SCHEDULE             a schedule
"""

from __future__ import annotations

JOB, WINDOW, SCHEDULE = "j", "d", "s"
PREFIXES = tuple(f"{kind}/".encode() for kind in (JOB, WINDOW, SCHEDULE))
"""What the key of every entry begins with."""


def job_key(job_id: str) -> bytes:
    return f"{JOB}/{job_id}".encode()


def dedup_key(type_name: str, dedup_id: str) -> bytes:
    return f"{WINDOW}/{type_name.replace('%', '%25').replace('/', '%2F')}/{dedup_id}".encode()


def schedule_key(name: str) -> bytes:
    return f"{SCHEDULE}/{name}".encode()


def parts_of(key: bytes) -> tuple[str, str]:
    """Kind of the entry and the rest; `dedup_of` takes the rest of a window's apart."""
    kind, _, name = key.decode("utf-8", "replace").partition("/")
    return kind, name


def dedup_of(name: str) -> tuple[str, str]:
    """Type and dedup id of a window."""
    type_name, _, dedup_id = name.partition("/")
    return type_name.replace("%2F", "/").replace("%25", "%"), dedup_id
