"""What a handler logs through `ctx.log`: written as ever, and its last lines kept for the dead letter that the attempt may end in."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from pipeline.model.headers import LOG_BYTES

LINES_MAX = 20
_LINE_CHARS = 400
_LEVELS = frozenset({"debug", "info", "warning", "warn", "error", "critical", "fatal", "exception", "msg", "log"})
_LEVELS_ASYNC = frozenset("a" + level for level in _LEVELS - {"warn", "fatal", "msg"})


class LogTail:
    """The last lines of one attempt. Made when `ctx.log` is first used; put into words only when the attempt has failed."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str, Any, dict[str, Any]]] = deque(maxlen=LINES_MAX)

    def add(self, level: str, event: Any, fields: dict[str, Any]) -> None:
        """From any thread."""
        self._lines.append((time.time_ns(), level, event, fields))

    def text(self) -> str:
        """One line each, oldest first; at most LINES_MAX, in LOG_BYTES the newest that fit."""
        lines: list[str] = []
        left = LOG_BYTES
        for at_ns, level, event, fields in reversed(list(self._lines)):
            line = _line(at_ns, level, event, fields)
            left -= len(line.encode("utf-8", "replace")) + 1
            if left < 0:
                break
            lines.append(line)
        return "\n".join(reversed(lines))


def _line(at_ns: int, level: str, event: Any, fields: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]
    try:
        words = [str(event), *(f"{name}={value!r}" for name, value in fields.items())]
    except Exception:  # a value's own repr may fail; the attempt's outcome must not depend on it
        words = ["(a line that can't be put into words)"]
    text = " ".join(words).replace("\n", "\\n")
    return f"{at} {level} {text[:_LINE_CHARS]}"


class TailLogger:
    """A structlog logger whose lines are also kept in a `LogTail`; everything else is the logger's own."""

    __slots__ = ("_bound", "_logger", "_tail")

    def __init__(self, logger: Any, tail: LogTail, bound: dict[str, Any] | None = None) -> None:
        self._logger = logger
        self._tail = tail
        self._bound = bound or {}

    def bind(self, **fields: Any) -> TailLogger:
        return type(self)(self._logger.bind(**fields), self._tail, {**self._bound, **fields})

    def new(self, **fields: Any) -> TailLogger:
        return type(self)(self._logger.new(**fields), self._tail, fields)

    def unbind(self, *names: str) -> TailLogger:
        kept = {name: value for name, value in self._bound.items() if name not in names}
        return type(self)(self._logger.unbind(*names), self._tail, kept)

    def try_unbind(self, *names: str) -> TailLogger:
        kept = {name: value for name, value in self._bound.items() if name not in names}
        return type(self)(self._logger.try_unbind(*names), self._tail, kept)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._logger, name)
        if name not in _LEVELS and name not in _LEVELS_ASYNC:
            return method

        def write(event: Any = None, *args: Any, **fields: Any) -> Any:
            shown = fields if event is not None else {key: value for key, value in fields.items() if key != "event"}
            said = fields.get("event") if event is None else event
            self._tail.add(name, _formatted(said, args), {**self._bound, **shown})
            return method(event, *args, **fields) if event is not None else method(*args, **fields)

        return write


def _formatted(event: Any, args: tuple[Any, ...]) -> Any:
    """With the arguments that structlog puts into the event by `%`; `log(level, event)` has the event among them."""
    if not args:
        return event
    try:
        return str(event) % args
    except Exception:
        return " ".join(map(str, (event, *args)))
