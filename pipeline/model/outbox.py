"""Jobs that a running handler asks for: they go out with its outputs, if it succeeds, and not otherwise.

Whoever asks for jobs (`jobs.client`) finds here whether it is called from inside a handler; whoever runs one (`worker`) says so. The ids of
such jobs are made of what is handled and a number, the same on every attempt: a handler that is run again asks for the same jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from pipeline.model.job_ids import RANDOM_BYTES, job_id


class Outbox:
    """Of one execution. `parent`: what is handled, `made_ms`: a time that it always has; `put` takes a topic without the prefix,
    key and value.

    `cluster` and `prefix` are the application's: what another one asks for is no output of this.
    """

    __slots__ = ("_number", "cluster", "made_ms", "parent", "prefix", "put")

    def __init__(
        self, cluster: str, prefix: str, parent: str, made_ms: int, put: Callable[[str, bytes, bytes], None]
    ) -> None:
        self.cluster = cluster
        self.prefix = prefix
        self.parent = parent
        self.made_ms = made_ms
        self.put = put
        self._number = 0

    def ids(self, count: int) -> list[str]:
        """For the next jobs. Called before anything is waited for, so that calls have their order of the handler's code."""
        first, self._number = self._number, self._number + count
        return [derived_id(self.parent, number, self.made_ms) for number in range(first, self._number)]


def derived_id(parent: str, number: int, made_ms: int) -> str:
    """The id of the so-manieth job that the handling of `parent` asks for."""
    drawn = hashlib.sha256(f"{parent}#{number}".encode()).digest()[:RANDOM_BYTES]
    return job_id(max(0, made_ms), drawn)


class Handling(Protocol):
    """An execution that is under way."""

    def outbox(self) -> Outbox | None:
        """None: it has ended."""


UNDER_WAY: ContextVar[Handling | None] = ContextVar("pipeline_under_way", default=None)
"""The execution that this code is part of. One for each item of a batch can't be told: there it is None."""


def current(cluster: str, topic: str) -> Outbox | None:
    """Where a job for this topic (real name) goes now; None: it is asked for directly."""
    handling = UNDER_WAY.get()
    outbox = None if handling is None else handling.outbox()
    if outbox is None or outbox.cluster != cluster or not topic.startswith(outbox.prefix):
        return None
    return outbox
