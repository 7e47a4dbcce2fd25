"""What Kafka's clients say of their own trouble, for people: one line per kind of trouble, not dozens.

A broker that is away makes every client say so at each attempt to connect, in its log and to its error callback. Both
come here; the first line of a kind is logged, what follows within 10 seconds is counted and told with the next.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 10.0
KINDS_MAX: Final = 100
"""Kinds remembered at most: their names come from the client library, so there are few; a bound all the same."""

_UNREACHABLE: Final = "unreachable"
_UNREACHABLE_MARKS: Final = frozenset({"FAIL", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT"})
_HEALING: Final = ("retrying", "Coordinator load in progress", "Coordinator not available")
_DOWN: Final = "-> DOWN"
_DOUBTS: Final = frozenset({"REQTMOUT", "RESPONSE"})
_SAID_TWICE: Final = "ERROR"
"""Facility of log lines that repeat what the error callback is told."""

_CODE = re.compile(r"\[(\w+)\]$")
_THREAD = re.compile(r"^\[thrd:[^\]]*\]: ")
_PLACE = re.compile(r"^(?:\w+://)?(?P<broker>[^\s/]+:\d+)/\w+: (?P<what>.*)")
_ATTEMPT = re.compile(r"Connect to (?P<address>\S+) failed: (?P<why>.*?) \(after .*")


class ClientLog:
    """The `logger` of a client (its method `log`) and its `on_error` at once. Called from any thread."""

    def __init__(self, log: logging.Logger, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}  # kind -> when it was logged last, how many were left out since

    def log(self, level: int, pattern: str, *parts: object) -> None:
        """A log line: confluent-kafka gives "%s [%s] %s" with facility, client and text."""
        facility, text = str(parts[0]) if parts else "", str(parts[-1]) if parts else pattern
        if level < logging.WARNING or facility == _SAID_TWICE:
            self._log.debug(pattern, *parts)
            return
        self._tell(level, facility, _THREAD.sub("", text))

    def error(self, text: str) -> None:
        """An error that heals by itself, as "text [NAME]"."""
        code = _CODE.search(text)
        self._tell(logging.WARNING, code[1] if code is not None else text, text)

    def _tell(self, level: int, name: str, text: str) -> None:
        if any(mark in text for mark in _HEALING):
            self._log.debug("kafka client: %s", text)
            return
        kind = _UNREACHABLE if name in _UNREACHABLE_MARKS else name
        left_out = self._take_turn(kind)
        if left_out is None:
            self._log.debug("kafka client: %s", text)
            return
        more = f" ({left_out} more of the kind since the last)" if left_out else ""
        level = min(level, logging.WARNING) if kind == _UNREACHABLE else level
        self._log.log(level, "kafka client: %s%s", readable(text), more)

    def _take_turn(self, kind: str) -> int | None:
        """How many were left out since the last of the kind; None when this one is left out too."""
        now_s = self._clock_s()
        with self._lock:
            at_s, left_out = self._told.get(kind, (None, 0))
            if at_s is not None and now_s - at_s < PAUSE_S:
                self._told[kind] = (at_s, left_out + 1)
                return None
            if kind not in self._told and len(self._told) >= KINDS_MAX:
                self._told.pop(next(iter(self._told)))
            self._told[kind] = (now_s, 0)
            return left_out


class Trouble:
    """The log of one client, passed on, that remembers whether it told of trouble with a connection or a coordinator.

    Wants the client's `debug=broker`: what it logs by itself leaves out a trouble that it told of in the last 30 seconds.
    """

    def __init__(self, log: ClientLog) -> None:
        self.seen = False
        self._log = log

    def log(self, level: int, pattern: str, *parts: object) -> None:
        if level > logging.DEBUG:
            self.seen = True
            self._log.log(level, pattern, *parts)
        elif _DOWN in str(parts[-1] if parts else pattern) or (parts and str(parts[0]) in _DOUBTS):
            self.seen = True


def readable(text: str) -> str:
    """The broker and what is wrong, without threads, states and repetitions."""
    place = _PLACE.match(text)
    if place is None:
        return text
    attempt = _ATTEMPT.match(place["what"])
    if attempt is None:
        return f"broker {place['broker']}: {place['what']}"
    return f"broker {place['broker']} can't be reached: {attempt['why'].lower()}; trying again"
