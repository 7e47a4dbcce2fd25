"""The command line as a whole: fast help, one sentence and an exit code for every error, output that can't steer a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli import main, output
from pipeline.cli.topics import in_words
from pipeline.model.errors import (
    BrokerStartError,
    ClusterError,
    ClusterUnavailable,
    ConfigurationError,
    NotAuthorized,
    PipelineError,
    SchemaUnavailable,
    TopologyError,
)
from pipeline.model.keys import key_text

runner = CliRunner()


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; sys.argv = ['pipeline', '--help']\n"
        "from pipeline.cli.main import run\n"
        "try: run()\n"
        "finally: print(*(set(sys.modules) & {'rich', 'confluent_kafka', 'faust', 'fastavro'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for name, (_, text) in main.COMMANDS.items():
        assert name in done.stdout
        assert text.rstrip(".") in done.stdout.replace("\n", " "), f"the help of {name} is cut: make it shorter"
    assert done.stderr.strip() == "", "these are imported for --help, which makes it slow"


@pytest.mark.parametrize(
    "name",
    [name for name in main.COMMANDS if Path(f"pipeline/cli/{main.COMMANDS[name][0].rpartition('.')[2]}.py").exists()],
)
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = runner.invoke(main.app, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "install-completion" not in shown.output
    if "Example" not in shown.output:
        commands = [line.split()[0] for line in shown.output.partition("Commands:")[2].splitlines() if line.strip()]
        assert commands
        for command in commands:
            assert "Example" in runner.invoke(main.app, [name, command, "--help"]).output, f"{name} {command}"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pipeline gro", {"groups"}),
        ("pipeline groups la", {"lag"}),
        ("pipeline why --dead", {"--dead-letters"}),
        ("pipeline dlq redrive --can", {"--canary", "--canary-wait"}),
    ],
)
def test_the_shell_completes_commands_and_their_options(typed: str, completed: set[str]) -> None:
    """What the script that `--install-completion` writes asks for at each Tab; sub-commands are loaded for it."""
    asked = {"_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    shown = runner.invoke(main.app, [], prog_name="pipeline", env=asked)
    assert shown.exit_code == 0, shown.output
    assert set(shown.stdout.split()) == completed


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`pipeline pause` that raises what is put into the list."""
    raised: list[BaseException] = []
    broken = typer.Typer()

    @broken.command()
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr("pipeline.cli.pause.app", broken)
    return raised


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (ConfigurationError("tiers are wrong"), 2),
        (TopologyError("retention.ms is short"), 2),
        (ClusterUnavailable("no broker answered"), 3),
        (SchemaUnavailable("the registry is away"), 3),
        (BrokerStartError("no java"), 3),
        (NotAuthorized("no ACL"), 1),
        (ClusterError("refused"), 1),
        (PipelineError("something"), 1),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    command: list[BaseException], problem: PipelineError, code: int
) -> None:
    command.append(problem)
    shown = runner.invoke(main.app, ["pause"])
    assert (shown.exit_code, shown.stderr) == (code, f"Error: {problem}\n")
    assert shown.stdout == ""


def test_ctrl_c_is_130_and_says_nothing(command: list[BaseException]) -> None:
    command.append(KeyboardInterrupt())
    shown = runner.invoke(main.app, ["pause"])
    assert (shown.exit_code, shown.output) == (130, "")


def test_a_bug_is_one_sentence_too_and_debug_shows_it(command: list[BaseException]) -> None:
    command.append(ZeroDivisionError("oh"))
    shown = runner.invoke(main.app, ["pause"])
    assert shown.exit_code == 70
    assert shown.stderr.count("\n") == 1
    assert "ZeroDivisionError: oh" in shown.stderr
    assert isinstance(runner.invoke(main.app, ["--debug", "pause"]).exception, ZeroDivisionError)


def test_usage_errors_are_2_and_suggest() -> None:
    shown = runner.invoke(main.app, ["topcs"])
    assert shown.exit_code == 2
    assert "topics" in shown.stderr


def test_a_closed_pipe_is_quiet() -> None:
    shell = f"{sys.executable} -c 'from pipeline.cli.main import run; run()' --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nonsense", "MODULE:APP"),
        ("no_such_module_here:app", "was not found"),
        ("json:dumps", "not a Pipeline"),
        ("json:nothing", "module 'json' has no variable 'nothing'"),
        ("os;rm:app", "MODULE:APP"),
    ],
)
def test_a_target_that_is_no_application_is_refused(target: str, words: str) -> None:
    shown = runner.invoke(main.app, ["topics", "plan", target])
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_module_that_breaks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_application.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    shown = runner.invoke(main.app, ["topics", "plan", "broken_application:app"])
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
    assert "ZeroDivisionError" in shown.stderr


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (0, "0s"),
        (250, "250ms"),
        (691_210_000, "8d 10s"),
        (691_800_000, "8d 10m"),
        (691_200_000, "8d"),
        (90_061_001, "1d 1h"),
        (59_001, "59s 1ms"),
    ],
)
def test_durations_are_in_units_of_people(ms: int, words: str) -> None:
    assert in_words(ms) == words


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_PREFIX", "no spaces allowed")
    shown = runner.invoke(main.app, ["topics", "list"])
    assert shown.exit_code == 2
    assert "PIPELINE_PREFIX" in shown.stderr


HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\nfake line\x00\ud800\u2028"


def test_hostile_text_is_shown_not_obeyed() -> None:
    shown = output.clean(HOSTILE)
    assert shown.startswith("\\x1b]0;owned\\x07\\x9b31m\\u202e")
    assert "\\r\\n" in shown
    assert shown.isprintable()


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    shown = output.clean(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)


@given(st.none() | st.binary(max_size=50))
def test_any_bytes_can_be_shown(raw: bytes | None) -> None:
    assert output.text_of(raw).encode()
    json.dumps(key_text(raw))


def test_without_a_terminal_tables_are_plain_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    output.table(["name", output.Column("lag", right=True)], [("a", 5), (long, 12_000), ("[red]b[/red]", None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "LAG"]
    assert lines[2] == f"{long}  12000"
    assert lines[3].startswith("[red]b[/red]")
    assert lines[1].endswith("    5")


def test_on_a_terminal_data_is_not_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.table(["name"], [("[bold]x[/bold] \x1b[31m",)])
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "\x1b[31m" not in shown


def test_json_is_one_ascii_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"key": HOSTILE})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert json.loads(shown) == {"key": HOSTILE}
