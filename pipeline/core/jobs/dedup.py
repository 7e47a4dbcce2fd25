"""Dedup windows: within one, requests of the same type and dedup id are the same job.

A window begins with the time at which its first request got into the inbox and is compared with that of later ones, not with a
clock: who reads the inbox again after a crash, or late, decides the same. A request from before the window that is known, and
without an entry, is the first of an older window that is read again: its duplicates have their entries, as they are written at once.
"""

from __future__ import annotations

from heapq import heappop, heappush

from pipeline.model.jobs import DedupWindow, JobRequest

Name = tuple[str, str]
"""Type and dedup id."""


def window_of(request: JobRequest, dedup_id: str) -> DedupWindow:
    """The one that this request begins."""
    until_ms = request.created_ms + request.dedup_window_ms
    return DedupWindow(request.type, dedup_id, request.id, request.created_ms, until_ms)


class Dedup:
    """`windows`: those that a request may still fall into."""

    __slots__ = ("_ends", "windows")

    def __init__(self) -> None:
        self.windows: dict[Name, DedupWindow] = {}
        self._ends: list[tuple[int, Name]] = []

    def first_of(self, request: JobRequest) -> str | None:
        """The job that this request is a duplicate of."""
        assert request.dedup_id is not None
        window = self.windows.get((request.type, request.dedup_id))
        if window is None or window.job_id == request.id or not window.from_ms <= request.created_ms < window.until_ms:
            return None
        return window.job_id

    def open(self, request: JobRequest) -> None:
        """The window that this request begins, unless a later one has begun."""
        assert request.dedup_id is not None
        began_ms = request.created_ms
        known = self.windows.get((request.type, request.dedup_id))
        if known is None or (known.job_id != request.id and known.from_ms <= began_ms):
            self.keep(window_of(request, request.dedup_id))

    def keep(self, window: DedupWindow) -> None:
        name = window.type, window.dedup_id
        self.windows[name] = window
        heappush(self._ends, (window.until_ms, name))

    def release(self, name: Name, job_id: str) -> bool:
        """The job ended so that its window ends too. Was it still its own?"""
        window = self.windows.get(name)
        if window is None or window.job_id != job_id:
            return False
        del self.windows[name]
        return True

    def over(self, read_ms: int) -> list[DedupWindow]:
        """Windows that no request can fall into any more, since the inbox was read up to this time; they are forgotten."""
        found = []
        while self._ends and self._ends[0][0] <= read_ms:
            until_ms, name = heappop(self._ends)
            window = self.windows.get(name)
            if window is not None and window.until_ms == until_ms:
                found.append(self.windows.pop(name))
        return found
