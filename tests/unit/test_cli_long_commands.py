"""What long commands share: Ctrl-C that ends them well, progress on standard error, and an editor only where somebody can use it."""

from __future__ import annotations

import io
import re
import signal
import sys

import pytest
from typer.testing import CliRunner

from pipeline.cli import bars, main
from pipeline.cli.stopping import stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_it_well_and_the_second_one_interrupts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before, ended = signal.getsignal(number), []
    with stoppable("finishing") as stopping:
        stopping.call(lambda: ended.append("first"))
        assert not stopping.asked
        signal.raise_signal(number)
        assert stopping.asked
        assert ended == ["first"]
        stopping.call(lambda: ended.append("made after it"))
        assert ended == ["first", "made after it"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert capsys.readouterr().err == "finishing\n"
    assert signal.getsignal(number) is before


def test_without_an_editor_and_a_terminal_an_edit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    shown = CliRunner().invoke(main.app, ["dlq", "edit", "0:1", "--group", "g", "--broker", "127.0.0.1:1"])
    assert shown.exit_code == 2
    assert "set EDITOR, or give --value FILE" in shown.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "QUIET_S", 0.0)


@pytest.mark.usefixtures("soon")
def test_elsewhere_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.bar("reading", "letters") as advance:
        for done in range(1_000, 3_000):
            advance(done, 4_000)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1, "the next one is seconds away"
    assert re.fullmatch(r"reading: 1,000 of 4,000 letters, [\d,]+/s, 0s left", told[0])


@pytest.mark.usefixtures("soon")
def test_on_a_terminal_words_stand_beside_the_bar_and_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    with bars.gauge("[bold]bil\x1bling") as show:
        show(1, None, lambda: "1 of [red]many")
    assert r"[bold]bil\x1bling" in screen.getvalue()
    assert "1 of [red]many" in screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_quiet_or_soon_over_shows_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with bars.bar("reading") as advance:
        advance(1, 2)
    monkeypatch.setattr(bars, "QUIET_S", 0.0)
    with bars.bar("reading", quiet=True) as advance:
        advance(1, 2)
    assert screen.getvalue() == ""


def test_progress_in_words() -> None:
    assert bars.progress_text(12_000, 40_000, 3_000.0, 9.3) == "12,000 of 40,000 records, 3,000/s, 9s left"
    assert bars.progress_text(12_000, None, 0.0, unit="bytes") == "12,000 bytes"
    assert [bars.span(s) for s in (0, 59.6, 3_700)] == ["0s", "1m 0s", "1h 1m"]
