"""`pipeline replay` and `groups reset` on a cluster in memory: paths that can't be, Ctrl-C, and what switches say."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline import Pipeline, Settings
from pipeline.cli.main import app as command
from pipeline.core.progress import decode
from pipeline.dead_letters import RedrivePolicy
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.records import is_settled
from pipeline.memory.cluster import forget
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.replay import claiming, planning
from pipeline.replay.audit import read_audit
from pipeline.topology import Defaults, apply

Cli = Callable[..., Result]
PLACE = TopicPartition("events", 0)
LANE = TopicPartition("events.g.retry.1s", 0)
PLAN = ("plan", "--topic", "events", "--group", "g")


@pytest.fixture
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pipeline]:
    """Group "g" has processed ten records; three wait in its lane."""
    address = f"memory://cli-replay-{request.node.name}"
    app = Pipeline("t", settings=Settings(broker=address))

    @app.subscribe("events", group="g", value="json", tiers=("1s",))
    async def handle(value: dict[str, Any], ctx: Any) -> None:
        """Never runs."""

    admin = app.cluster.admin()
    apply(admin, app.subscriptions, Defaults(partitions=1))
    append(app.cluster, "events", [Entry(b"k", b'{"n": %d}' % n, partition=0) for n in range(10)])
    append(app.cluster, LANE.topic, [Entry(b"k", b"{}", partition=0) for _ in range(3)])
    admin.set_group_positions("g", {PLACE: Position(10)})
    for name, value in (("BROKER", address), ("PREFIX", "")):
        monkeypatch.setenv(f"PIPELINE_{name}", value)
    monkeypatch.chdir(tmp_path)
    yield app
    forget(address)


@pytest.fixture
def cli(app: Pipeline) -> Cli:
    def run(*arguments: str, code: int = 0, of: str = "replay") -> Result:
        result = CliRunner().invoke(command, [of, *arguments])
        assert result.exit_code == code, result.output
        return result

    return run


def never(*_arguments: object, **_named: object) -> Any:
    raise AssertionError("nothing was to be read")


def interrupted(*_arguments: object, **_named: object) -> Any:
    signal.raise_signal(signal.SIGINT)


# -- paths


def test_a_plan_that_can_not_be_written_is_told_before_anything_is_read(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("precious")
    to_file = ("plan", "--topic", "events", "--to-file")
    with monkeypatch.context() as patched:
        patched.setattr(planning, "make_plan", never)
        for arguments, said in (
            ((*PLAN, "-o", str(kept)), "is there already, and no plan is written over: delete it first"),
            ((*PLAN, "-o", str(tmp_path / "no" / "p.json")), "does not exist; make it first"),
            ((*to_file, str(tmp_path / "no" / "f.avro")), "there is no directory"),
            ((*to_file, str(kept)), "is there already: move or delete it first"),
            ((*PLAN, "-o", "x" * 300), "can't be used: File name too long"),
            ((*to_file, "x" * 300), "can't be used: File name too long"),
        ):
            assert said in cli(*arguments, code=2).stderr
    assert kept.read_text() == "precious"
    cli(*PLAN, "-o", "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["preview"]["selected"] == 10


def test_a_plan_that_can_not_be_read_is_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        assert "there is no plan file" in cli("status", name, code=2).stderr
    (tmp_path / "p.json").write_text("{}")

    def denied(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "p.json can't be read: Permission denied" in cli("status", "p.json", code=2).stderr
    assert "is not a file to write" in cli("export", "x" * 300 + "/", "--group", "g", code=2, of="dlq").stderr
    assert "can't be written: File name too long" in cli("export", "x" * 300, "--group", "g", code=2, of="dlq").stderr


@pytest.mark.parametrize("rate", ["inf", "1e999"])
def test_a_rate_is_a_number(cli: Cli, rate: str) -> None:
    """No plan is made that no run could keep to."""
    assert "--rate" in cli(*PLAN, "--rate", rate, code=2).stderr
    with pytest.raises(ConfigurationError, match="rate"):
        RedrivePolicy(rate=float(rate))


def test_a_plan_whose_place_is_taken_while_it_is_made_writes_over_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = planning.make_plan

    def slow(*arguments: Any) -> Any:
        (tmp_path / "p.json").write_text("precious")
        return make(*arguments)

    monkeypatch.setattr(planning, "make_plan", slow)
    assert "--out p.json can't be written, so there is no plan" in cli(*PLAN, "-o", "p.json", code=2).stderr
    assert (tmp_path / "p.json").read_text() == "precious"


def test_a_plan_about_a_file_is_not_shared(app: Pipeline, cli: Cli) -> None:
    cli("plan", "--topic", "events", "--to-file", "f.avro", "-o", "p.json")
    cli("plan", "--topic", "events", "--to-file", "g.avro", "-o", "q.json")
    for more in (("--processes", "2"), ("--join",)):
        said = cli("run", "p.json", "--yes", "--reason", "x", *more, code=2).stderr
        assert "leave out --processes and --join" in said
    assert list(read_audit(app.cluster, "_pipeline.audit")) == []
    cli("run", "p.json", "--yes", "--reason", "x")
    cli("plan", "--from-file", "f.avro", "--group", "g", "-o", "back.json")
    assert "leave out --processes" in cli("run", "back.json", "--yes", "--reason", "x", "--join", code=2).stderr


# -- Ctrl-C


def test_ctrl_c_of_a_plan_says_that_nothing_was_done(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "make_plan", interrupted)
    said = cli(*PLAN, "-o", "p.json", code=130).stderr
    assert said == "Interrupted: no plan was written and nothing was sent; run the command again.\n"
    assert not (tmp_path / "p.json").exists()


RESET = ("reset", "g", "--topic", "events", "--to-earliest", "--execute", "--reason", "x")


def test_ctrl_c_of_a_reset_while_it_reads_says_that_nothing_was_done(
    app: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "read_batches", interrupted)
    said = cli(*RESET, code=130, of="groups").stderr
    assert said == "Interrupted: the group was not changed; run the command again.\n"
    assert app.cluster.admin().group_positions("g") == {PLACE: Position(10)}
    assert list(read_audit(app.cluster, "_pipeline.audit")) == []


def test_ctrl_c_of_a_reset_while_it_stores_is_answered_and_it_is_stored(
    app: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = claiming.refuse_live
    looks: list[str] = []

    def at_the_second_look(admin: Any, group: str) -> None:
        looks.append(group)
        if len(looks) == 2:
            interrupted()
        refuse(admin, group)

    monkeypatch.setattr(claiming, "refuse_live", at_the_second_look)
    shown = cli(*RESET, of="groups")
    assert "the positions are being stored" in shown.stderr
    assert "moved: 10 records run again" in shown.stdout
    assert app.cluster.admin().group_positions("g")[PLACE].offset == 0


def test_two_ctrl_c_of_a_reset_while_it_stores_say_where_to_look(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_arguments: object) -> None:
        interrupted()
        interrupted()

    monkeypatch.setattr(claiming, "commit", twice)
    assert "`pipeline groups lag g` shows where it stands" in cli(*RESET, code=130, of="groups").stderr


@pytest.mark.parametrize("empty", [False, True])
def test_a_group_whose_lanes_end_in_markers_of_transactions_can_be_moved(app: Pipeline, cli: Cli, empty: bool) -> None:
    """As every lane of a group does that processes exactly once: no record ever comes at its last offsets."""
    lane = TopicPartition("events.g.replay", 0) if empty else LANE
    log = app.cluster.log(lane)  # type: ignore[attr-defined]
    log.skip(2)
    cli(*RESET, of="groups")
    positions = app.cluster.admin().group_positions("g")
    assert positions[PLACE].offset == 0
    found = decode(positions[lane].offset, positions[lane].metadata)
    assert [offset for offset in range(log.end) if not is_settled(found, offset)] == ([] if empty else [0, 1, 2])


def test_a_key_that_is_no_text_is_looked_for_as_it_was_typed(app: Pipeline, cli: Cli) -> None:
    """A shell's bytes come as lone surrogates where they are no UTF-8."""
    append(app.cluster, "events", [Entry(b"\xffk", b"{}", partition=0)])
    assert "0xff6b" in cli("\udcffk", "--json", of="why").stdout
    assert json.loads(cli("\udcfe", "--json", of="why", code=1).stdout)["found"] == []
    cli("skip", "g", "\udcffk", of="keys", code=1)
    plan = json.loads(cli("plan", "--topic", "events", "--to-file", "f.avro", "--key", "\udcffk", "--json").stdout)
    assert plan["preview"]["selected"] == 1


def test_a_reset_tells_how_far_it_has_read_the_lanes(app: Pipeline) -> None:
    admin, told = app.cluster.admin(), list[tuple[int, int]]()
    at = claiming.look(app.cluster, admin, "g", "events")
    progress = at.standings()[PLACE].progress
    assert progress is not None
    claiming.claim(app.cluster, at, {PLACE: progress}, scanned=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


# -- switches


def test_switches_say_what_comes_of_them_when_nobody_runs_the_plan(app: Pipeline, cli: Cli) -> None:
    cli(*PLAN, "-o", "p.json")

    def switched(verb: str, code: int = 0) -> str:
        return cli(verb, "p.json", "--reason", "x", code=code).output

    assert "is not paused (not started): nothing to resume" in switched("resume", 1)
    assert "nobody runs it now, and who does will wait for `pipeline replay resume p.json`" in switched("pause")
    assert "it was paused before, too" in switched("pause")
    assert "nobody runs it now, so take it up: pipeline replay run p.json" in switched("resume")
    assert "nobody runs it now, and nobody can any more" in switched("cancel")
    assert "is cancelled already: nothing to resume" in switched("resume", 1)
    found = [entry.action for _, entry in read_audit(app.cluster, "_pipeline.audit")]
    assert found == ["replay.pause", "replay.pause", "replay.resume", "replay.cancel"], "what did nothing is not in it"


# -- what could not be written


def test_status_says_which_records_could_not_be_written_and_why(app: Pipeline, cli: Cli) -> None:
    """Dead letters whose headers do not say where they come from."""
    append(app.cluster, "events.g.dlq", [Entry(b"k", b"%d" % n, partition=0) for n in range(12)])
    cli("plan", "--topic", "events.g.dlq", "--to-topic", "events", "-o", "p.json")
    said = cli("run", "p.json", "--yes", "--reason", "x", code=1).stderr
    plan = json.loads(Path("p.json").read_text())["plan_id"]
    assert f"12 records could not be written: `pipeline replay status {plan}` says which, and why" in said
    shown = cli("status", plan).stdout
    assert "could not be written, the first 10 of 12:" in shown
    assert shown.count("its headers do not say where it comes from") == 10
    found = json.loads(cli("status", plan, "--json").stdout)
    assert found["counts"] == {"failed": 12}
    assert [(f["partition"], f["offset"], f["outcome"]) for f in found["failures"]] == [
        (0, n, "failed") for n in range(10)
    ]
    assert "its headers do not say where it comes from" in found["failures"][0]["error"]
