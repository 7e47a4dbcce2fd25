"""Progress of long commands, on standard error: a bar and words on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from pipeline.cli.output import clean, note

QUIET_S = 1.0
"""What is done sooner shows nothing."""
TELL_EVERY_S = 5.0

Advance = Callable[[int, int | None], None]
"""(done, of so many)"""
Show = Callable[[int, int | None, Callable[[], str]], None]
"""(done, of so many, how far in words: asked for only when they are shown)"""


@contextlib.contextmanager
def bar(what: str, unit: str = "records", quiet: bool = False) -> Iterator[Advance]:
    """Call what this gives with how far it is; the rate and the time that is left are worked out here."""
    began = time.monotonic()

    def words(done: int, total: int | None) -> str:
        seconds = time.monotonic() - began
        rate = done / seconds if seconds > 0 else 0.0
        left_s = max(0, total - done) / rate if rate > 0 and total is not None else None
        return progress_text(done, total, rate, left_s, unit)

    with gauge(what, quiet) as show:
        yield lambda done, total: show(done, total, lambda: words(done, total))


@contextlib.contextmanager
def gauge(what: str, quiet: bool = False) -> Iterator[Show]:
    """The same for who has words of its own. Nothing appears before `QUIET_S`, or at all when `quiet`."""
    what = clean(what)
    if quiet:
        yield lambda _done, _total, _words: None
    elif sys.stderr.isatty():
        yield from _drawn(what)
    else:
        yield _Plain(what)


def progress_text(
    done: int, total: int | None, rate: float | None, left_s: float | None = None, unit: str = "records"
) -> str:
    """ "12,000 of 40,000 records, 3,000/s, 9s left" """
    said = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
    said += f", {rate:,.0f}/s" if rate else ""
    return said if left_s is None else f"{said}, {span(left_s)} left"


def span(seconds: float) -> str:
    """ "1h 5m", "2m 10s", "9s" """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"


class _Plain:
    def __init__(self, what: str) -> None:
        self._what = what
        self._tell_at_s = time.monotonic() + QUIET_S

    def __call__(self, done: int, total: int | None, words: Callable[[], str]) -> None:
        now_s = time.monotonic()
        if now_s >= self._tell_at_s:
            self._tell_at_s = now_s + TELL_EVERY_S
            note(f"{self._what}: {words()}", "")


def _drawn(what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),  # names of groups and files are in it
        BarColumn(30),
        TextColumn("{task.fields[words]}", markup=False),
    )
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    task = shown.add_task(what, total=None, words="")
    begin_at_s, started = time.monotonic() + QUIET_S, False

    def show(done: int, total: int | None, words: Callable[[], str]) -> None:
        nonlocal started
        if not started and time.monotonic() < begin_at_s:
            return
        if not started:
            shown.start()
            started = True
        shown.update(task, completed=done, total=total, words=words())

    try:
        yield show
    finally:
        if started:
            shown.stop()
