"""Every `pipeline dlq` command on real Kafka: what it says, changes and refuses, and what hostile records do to it (nothing)."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Context
from pipeline.cli.main import app as command
from pipeline.codec import AvroCodec
from pipeline.codec.container import StoredRecord, read_container
from pipeline.dead_letters import (
    Actor,
    converting,
    edit_dead_letter,
    editing,
    list_dead_letters,
    marking,
    search_dead_letters,
    show_dead_letter,
)
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.query import Wanted
from pipeline.model.cluster import Headers, TopicPartition
from pipeline.model.errors import ConfigurationError, TopologyError
from pipeline.model.events import ToolCall
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers, decode
from pipeline.model.topics import AUDIT_TOPIC, RESULTS_TOPIC, TASKS_TOPIC
from pipeline.replay.audit import AuditEntry, read_audit
from tests.integration.harness import GROUP, ROOT, SOURCE, Scene, running, until_async
from tests.patience import PATIENCE

PARTITIONS = 2
pytestmark = pytest.mark.timeout(180)
ANA = Actor("ana@ops", "a test of hers")
HOSTILE = "\x1b[31mred\x1b]0;title\x07\u202eevil\r\nnew line \x00 nul <img onerror=alert(1)> '; DROP TABLE letters; -- %s {0} \ud7ff"


class Dead:
    """One test's dead letters: written by hand as a worker writes them, and the command line."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.app = scene.app(state_dir=str(scene.folder / "state"))

        @self.app.subscribe(SOURCE, group=GROUP, tiers=("200ms",), value="json")
        async def handle(value: Any, ctx: Context) -> None: ...

        scene.make_topics(self.app)
        self.topic = scene.lane("dlq")

    def die(
        self,
        origin: int,
        key: str | None = "k",
        value: Any = None,
        partition: int = 0,
        more: Headers | None = None,
        **error: str,
    ) -> str:
        """A dead letter; its position."""
        info = ErrorInfo(
            **{
                "error_class": "retryable",
                "error_type": "TimeoutError",
                "message": f"slow {origin}",
                "stack": "at x",
                **error,
            }
        )
        delivery = DeliveryHeaders(
            3, 2, 1, self.scene.topic(), partition, origin, 1_790_000_000_000 + origin, self.scene.prefix + GROUP,
            first_failed_ms=1_790_000_000_001, error=info,
        )  # fmt: skip
        event: Headers = [("pl.event_id", f"e-{origin}".encode())]
        headers = dead_letter_headers(event, delivery) + (more or [])
        made = self.scene.publish(
            key, {"n": origin} if value is None else value, headers, partition, self.topic[len(self.scene.prefix) :]
        )
        time.sleep(0.002)  # the next one dies in a later millisecond: the order by time is then said
        return f"{made[0]}:{made[1]}"

    def run(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        result = CliRunner().invoke(command, ["dlq", *words], input=stdin)
        assert result.exit_code == code, (words, result.output, result.exception)
        return result.output

    def json(self, *words: str, code: int = 0) -> Any:
        shown = CliRunner().invoke(command, ["dlq", *words, "--group", GROUP, "--json"])
        assert shown.exit_code == code, (words, shown.output, shown.exception)
        return json.loads(shown.stdout)

    def states(self) -> dict[str, str]:
        return {x["position"]: x["state"] for x in self.json("list", "--state", "all")["dead_letters"]}

    def audit(self) -> list[AuditEntry]:
        return [entry for _, entry in read_audit(self.scene.client.cluster, self.scene.prefix + AUDIT_TOPIC)]

    def beginning(self, partition: int = 0) -> int:
        place = TopicPartition(self.topic, partition)
        return int(self.scene.admin.beginning_offsets([place])[place])


@pytest.fixture
def dead(kafka: str, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dead]:
    with Scene(kafka, topic_name[-20:], tmp_path, PARTITIONS) as scene:
        monkeypatch.setenv("PIPELINE_BROKER", scene.bootstrap)
        monkeypatch.setenv("PIPELINE_PREFIX", scene.prefix)
        monkeypatch.setenv("PIPELINE_STATE_DIR", str(tmp_path / "state"))
        yield Dead(scene)


YES = ("--yes", "--reason", "a test")


def test_list_search_and_show(dead: Dead) -> None:
    one = dead.die(1, key="run-1")
    two = dead.die(2, key="run-2", message="no table 'x7'", error_type="KeyError")
    listed = dead.json("list")
    assert [x["position"] for x in listed["dead_letters"]] == [two, one]
    assert listed["total"] == 2
    assert [x["position"] for x in dead.json("search", "table")["dead_letters"]] == [two]
    assert [x["position"] for x in dead.json("search", "--where", "value.n == 1 and attempt >= 3")["dead_letters"]] == [
        one
    ]
    assert dead.json("search", "nothing like it", code=1)["dead_letters"] == []
    page = dead.json("list", "--limit", "1")
    assert [x["position"] for x in dead.json("list", "--limit", "1", "--after", page["after"])["dead_letters"]] == [one]
    (shown,) = dead.json("show", two)
    assert (shown["value"], shown["key"], shown["event_id"], shown["stack"]) == ({"n": 2}, "run-2", "e-2", "at x")
    assert shown["origin_offset"] == 2
    text = dead.run("show", "--event-id", "e-1", "--group", GROUP)
    assert "TimeoutError: slow 1" in text
    assert "origin:       " + dead.scene.topic() in text
    assert dead.json("show", "0:999", code=1) == []
    assert "does not exist" in dead.run("list", "--topic", "nowhere", code=2)
    assert "did you mean attempt" in dead.run("list", "--where", "atempt > 1", "--group", GROUP, code=2)
    assert "must be one of" in dead.run("list", "--state", "opened", "--group", GROUP, code=2)
    assert "not a position" in dead.run("show", "1-2", "--group", GROUP, code=2)
    stats = dead.json("stats")
    assert {(e["name"], e["error_type"]) for e in stats["errors"]} == {
        ("slow <n>", "TimeoutError"),
        ("no table <text>", "KeyError"),
    }
    api = search_dead_letters(dead.app, "slow", group=GROUP)
    assert [letter.position for letter in api.letters] == [one]
    assert show_dead_letter(dead.app, (0, 1), group=GROUP).value == {"n": 2}
    with pytest.raises(ConfigurationError, match="there is no dead letter 0:77"):
        show_dead_letter(dead.app, (0, 77), group=GROUP)


def test_every_option_narrows(dead: Dead) -> None:
    said = {"run_id": "r-1", "tenant": "acme"}
    one = dead.die(1, key="run-1", value=said, error_class="timed_out")
    two = dead.die(2, key="run-2", value={"run_id": "r-2"}, message="no table 'x7'", error_type="KeyError")
    three = dead.die(3, key="run-1", value={**said, "run_id": "r-3"}, partition=1)
    died = {x["position"]: _iso(x["died_ms"]) for x in dead.json("list")["dead_letters"]}
    table: dict[tuple[str, ...], list[str]] = {
        ("--run-id", "r-1"): [one],
        ("--run-id", "r-1", "--run-id", "r-2"): [two, one],
        ("--error", "slow <n>"): [three, one],
        ("--error", "no table <text>"): [two],
        ("--error-type", "KeyError"): [two],
        ("--error-class", "timed_out"): [one],
        ("--key", "run-1"): [three, one],
        ("--event-id", "e-2"): [two],
        ("--tenant", "acme"): [three, one],
        ("--from-time", died[two]): [three, two],
        ("--to-time", died[two]): [one],
        ("--from-time", died[two], "--to-time", died[three]): [two],
        ("--last", "1h"): [three, two, one],
        ("--last", "1ms"): [],
        ("--key", "run-1", "--error-class", "retryable"): [three],
    }
    for options, expected in table.items():
        found = [x["position"] for x in dead.json("list", *options)["dead_letters"]]
        assert found == expected, options
    assert {e["name"] for e in dead.json("stats")["errors"]} == {"slow <n>", "no table <text>"}
    top = dead.json("stats", "--top", "1")
    assert (len(top["errors"]), len(top["tenants"]), top["total"]) == (1, 1, 3)
    assert [x["position"] for x in dead.json("show", "--key", "run-1", "--limit", "2")] == [three, one]
    assert [x["position"] for x in dead.json("show", "--key", "run-1")] == [three], "one when nothing is said"


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat()


def test_rebuild_reads_everything_again(dead: Dead) -> None:
    places = [dead.die(n) for n in range(3)]
    assert len(dead.json("list")["dead_letters"]) == 3
    with Desk.of(dead.app, GROUP) as desk, desk.store.writing() as db:
        db.execute("DELETE FROM letters WHERE id = 1")
    assert len(dead.json("list")["dead_letters"]) == 2, "what is in the index is not read again"
    assert [x["position"] for x in dead.json("list", "--rebuild")["dead_letters"]] == places[::-1]


def test_show_has_all_that_a_worker_knew(dead: Dead) -> None:
    """Both attempts with what failed in each, the last one's stack and log, where it was published, and its trace."""
    app = dead.scene.app()

    @app.subscribe(SOURCE, group=GROUP, tiers=("200ms",), attempts=2, value="json")
    async def charge(value: Any, ctx: Context) -> None:
        ctx.log.info("asking for a price", attempt=ctx.attempt)
        raise (TimeoutError("no answer") if ctx.attempt == 1 else KeyError("price of x7"))

    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers: Headers = [("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode()), ("pl.event_id", b"e-9")]

    async def go() -> tuple[int, int]:
        async with running(app, PARTITIONS):
            origin = dead.scene.publish("run-9", {"n": 9}, headers)
            await until_async("it died", lambda: dead.scene.count(dead.topic) == 1)
            return origin

    partition, offset = asyncio.run(go())
    (shown,) = dead.json("show", "--event-id", "e-9")
    assert [(a["number"], a["error_type"], a["message"]) for a in shown["attempts"]] == [
        (1, "TimeoutError", "no answer"),
        (2, "KeyError", "'price of x7'"),
    ]
    assert all(0 < a["started_ms"] <= a["failed_ms"] for a in shown["attempts"])
    assert shown["attempts"][1]["started_ms"] - shown["attempts"][0]["failed_ms"] >= 200
    assert (shown["attempt"], shown["attempts_complete"], shown["attempts_dropped"]) == (2, True, 0)
    assert (shown["origin_topic"], shown["origin_partition"], shown["origin_offset"]) == (
        dead.scene.topic(),
        partition,
        offset,
    )
    assert shown["trace_id"] == trace
    assert "in charge" in shown["stack"]
    assert "KeyError: 'price of x7'" in shown["stack"]
    assert shown["log"].count("asking for a price") == 1, "of the last attempt"
    assert "attempt=2" in shown["log"]
    assert shown["value"] == {"n": 9}
    text = dead.run("show", "--event-id", "e-9", "--group", GROUP)
    for part in (
        "TimeoutError: no answer",
        "KeyError: 'price of x7'",
        "2 attempts",
        trace,
        "asking for a price",
        "in charge",
    ):
        assert part in text


def test_hostile_text_in_every_field_reaches_no_terminal(dead: Dead) -> None:
    evil = HOSTILE.encode("utf-8", "replace")
    more: Headers = [
        ("traceparent", evil), (HOSTILE[:40].replace("\x00", ""), evil), ("ce_type", evil), ("pl.log", evil), ("pl.history", evil),
        ("pl.replay.id", evil), ("pl.schema", evil), ("pl.edited_from", evil), ("null", None),
    ]  # fmt: skip
    position = dead.die(
        1,
        key=HOSTILE,
        value={"tenant": HOSTILE, "run_id": HOSTILE, "x": HOSTILE},
        more=more,
        message=HOSTILE,
        error_type=HOSTILE,
        stack=HOSTILE,
    )
    dead.scene.publish(
        HOSTILE,
        evil,
        [("pl.attempt", evil), ("pl.group", b"\xff"), ("pl.origin.offset", b"9" * 30)],
        0,
        dead.topic[len(dead.scene.prefix) :],
    )
    for words in (
        ("list",), ("stats",), ("search", "evil"), ("show", position), ("show", "0:1"),
        ("cancel", position, *YES), ("redrive", "0:1", *YES),
        ("convert", position, "--to", HOSTILE, "--task", HOSTILE, "--yes", "--reason", HOSTILE),
    ):  # fmt: skip
        for form in ((), ("--json",)):
            result = CliRunner().invoke(
                command, ["dlq", *words, "--topic", dead.topic, *form]
            )  # one says another group
            assert result.exit_code in (0, 1, 2), (words, result.output, result.exception)
            bad = {c for c in result.output if (ord(c) < 32 and c != "\n") or c in "\u202e\x7f"}
            assert not bad, (words, bad)
    path = dead.scene.folder / "letters.jsonl"
    dead.run("export", str(path), "--state", "all", "--topic", dead.topic)
    assert len(path.read_text().splitlines()) == 2


def test_purge_is_audited_marks_and_deletes_the_head(dead: Dead) -> None:
    places = [dead.die(n, key=f"k{n}") for n in range(6)]
    assert "--all" in dead.run("purge", "--group", GROUP, *YES, code=2)
    assert "--reason" in dead.run("purge", places[0], "--group", GROUP, "--yes", code=2)
    assert "add --yes" in dead.run("purge", places[0], "--group", GROUP, "--reason", "x", code=2)
    assert dead.audit() == [], "nothing was done yet"
    done = dead.json("purge", places[1], places[3], *YES)
    assert done["counts"] == {"purged": 2}
    assert done["details"]["deleted"] == 0, "an open one stands before them"
    assert dead.beginning() == 0
    done = dead.json("purge", places[0], places[1], *YES)
    assert done["counts"] == {"purged": 1}
    assert done["left_out"] == {"purged already": 1}
    assert dead.beginning() == 2, "0 and 1 are gone, 2 is open"
    assert dead.states() == {places[2]: "open", places[3]: "purged", places[4]: "open", places[5]: "open"}
    assert [entry.action for entry in dead.audit()] == ["purge", "purge"]
    assert dead.audit()[0].why == "a test"
    assert "@" in dead.audit()[0].who
    dead.json("purge", "--all", *YES)
    assert dead.states() == {}
    assert dead.beginning() == 6
    assert "No dead letters match" in dead.run("purge", "--all", "--group", GROUP, *YES, code=1)


def test_nothing_is_done_when_it_can_not_be_written_down(dead: Dead) -> None:
    position = dead.die(1)
    for topic in (AUDIT_TOPIC, RESULTS_TOPIC):
        dead.scene.admin.delete_topics([dead.scene.prefix + topic])
        dead.scene.until(
            "it is gone", lambda topic=topic: dead.scene.prefix + topic not in dead.scene.admin.topic_names()
        )
        for words in (("purge", position), ("cancel", position), ("redrive", position, "--canary", "0")):
            shown = dead.run(*words, "--group", GROUP, *YES, code=2)
            assert "pipeline topics apply" in shown, shown
        assert dead.json("list")["dead_letters"][0]["state"] == "open"
        assert dead.scene.count(dead.scene.lane("replay")) == 0
    with pytest.raises((TopologyError, ConfigurationError)):
        edit_dead_letter(dead.app, (0, 0), lambda value: {"n": 9}, ANA, group=GROUP)
    assert dead.scene.count(dead.topic) == 1


def test_cancel_and_convert(dead: Dead) -> None:
    one, two = dead.die(1), dead.die(2)
    assert dead.json("cancel", one, *YES)["counts"] == {"cancelled": 1}
    assert dead.json("cancel", one, *YES, code=1)["left_out"] == {"cancelled already": 1}
    done = dead.json("convert", two, "--to", "ana", "--task", "book it", *YES)
    assert done["counts"] == {"converted": 1}
    (record,) = dead.scene.read(dead.scene.prefix + TASKS_TOPIC)
    task = json.loads(record.value() or b"")
    assert (task["to"], task["what"], task["why"]) == ("ana", "book it", "a test")
    assert task["task"] == done["details"]["tasks"][0]
    assert task["dead_letter"]["position"] == two
    assert task["dead_letter"]["value"] == {"n": 2}
    assert dead.states() == {one: "cancelled", two: "converted"}
    assert dead.json("list")["dead_letters"] == [], "neither is open"
    assert {a["action"] for a in dead.json("show", two)[0]["actions"]} == {"convert"}


def test_edit_keeps_both_versions(dead: Dead, tmp_path: Path) -> None:
    position = dead.die(7, key="run-7", value={"n": 7, "name": "Jörg"})
    new = tmp_path / "new.json"
    new.write_text('{"n": 8, "name": "Jörg"}')
    shown = dead.run("edit", position, "--value", str(new), "--group", GROUP, *YES)
    assert '-  "n": 7' in shown
    assert '+  "n": 8' in shown
    assert "Jörg" in shown
    assert dead.states() == {position: "edited", "0:1": "open"}
    old, made = dead.scene.read(dead.topic)
    assert json.loads(made.value() or b"") == {"n": 8, "name": "Jörg"}
    assert (made.key(), made.partition()) == (old.key(), old.partition())
    kept = [pair for pair in made.headers() or () if pair[0] != "pl.edited_from"]
    assert kept == old.headers(), "everything that is known of the failure goes with it"
    (after,) = dead.json("show", "0:1")
    assert after["edited_from"] == position
    assert dead.json("show", position)[0]["edited_to"] == "0:1"
    assert [entry.action for entry in dead.audit()] == ["reveal", "edit"]
    assert "can't be edited" in dead.run("edit", position, "--value", str(new), "--group", GROUP, *YES, code=2)
    assert "Nothing was changed" in dead.run("edit", "0:1", "--value", str(new), "--group", GROUP, *YES, code=1)
    new.write_text("{not json")
    assert "not JSON" in dead.run("edit", "0:1", "--value", str(new), "--group", GROUP, *YES, code=1)
    assert dead.scene.count(dead.topic) == 2


EDITOR = """
import pathlib, sys
file, opened, texts = pathlib.Path(sys.argv[-1]), pathlib.Path({opened!r}), {texts!r}
turn = len(opened.read_text()) if opened.exists() else 0
opened.write_text("x" * (turn + 1))
if texts[turn] is None:
    sys.exit(3)
file.write_text(file.read_text().replace(*texts[turn]))
"""


class Typed:
    """`pipeline dlq edit` on a terminal, with an editor that makes one replacement each time it is opened (None: it fails)."""

    def __init__(self, dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead, self.opened = dead, dead.scene.folder / "opened"
        self._script = dead.scene.folder / "editor.py"
        monkeypatch.setenv("VISUAL", f"{sys.executable} {self._script}")

    def edit(self, position: str, texts: list[tuple[str, str] | None], answers: str = "") -> tuple[int, str]:
        """(exit code, all that it said). `answers`: typed ahead, a terminal keeps it."""
        self.opened.unlink(missing_ok=True)
        self._script.write_text(EDITOR.format(opened=str(self.opened), texts=texts))
        words = ["dlq", "edit", position, "--group", GROUP, "--reason", "a test"]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", *words], cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            os.write(ours, answers.encode())
            out, _ = process.communicate(timeout=60 * PATIENCE)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return process.returncode, out


def test_edit_in_an_editor(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    position = dead.die(7, value={"n": 7, "name": "ann"})
    typed = Typed(dead, monkeypatch)
    code, said = typed.edit(position, [None])
    assert (code, "the editor did not run" in said) == (2, True), said
    code, said = typed.edit(position, [('"n": 7', '"n": ')], "n\n")
    assert (code, "not JSON" in said) == (1, True), said
    assert dead.states() == {position: "open"}, "nothing was changed so far"
    code, said = typed.edit(position, [('"n": 7', '"n": '), ('"n": ', '"n": 8')], "y\ny\n")
    assert code == 0, said
    assert len(typed.opened.read_text()) == 2, "opened again, with what was typed first"
    assert '+  "n": 8' in said
    assert dead.states() == {position: "edited", "0:1": "open"}
    assert dead.json("show", "0:1")[0]["value"] == {"n": 8, "name": "ann"}
    assert dead.scene.count(dead.topic) == 2


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (("purge",), "which the next purge does; the same command goes on"),
        (("cancel",), "the same command goes on"),
        (("convert", "--to", "ana", "--task", "book it"), "has the same id"),
        (("edit", "--value", "-"), "`pipeline dlq show 0:0 --group g` says so (edited to)"),
    ],
)
def test_ctrl_c_says_what_may_be_done_and_how_to_go_on(
    dead: Dead, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], goes_on: str
) -> None:
    """Where it hurts most: the audit has it, and nothing says yet what came of it."""
    position = dead.die(1, value={"n": 1})
    interrupted: list[str] = []

    def interrupt(_desk: Any, _actor: Any, action_id: str, *_: Any) -> None:
        interrupted.append(action_id)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for module in (marking, converting, editing):
            patched.setattr(module, "record", interrupt)
        said = dead.run(words[0], position, *words[1:], "--group", GROUP, *YES, code=130, stdin='{"n": 2}')
    assert interrupted
    assert "Interrupted: " in said
    assert goes_on in " ".join(said.split())
    edited = words[0] == "edit"
    assert dead.states()[position] == ("edited" if edited else "open"), "an edit is told by the new version itself"
    said = dead.run(words[0], position, *words[1:], "--group", GROUP, *YES, code=2 if edited else 0, stdin='{"n": 2}')
    assert not edited or "edited already" in " ".join(said.split())
    assert dead.states().get(position) != "open", "the same command went on"
    assert dead.scene.count(dead.topic) == (2 if edited else 1)


class _NoRegistry:
    """As when the registry's machine is gone."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the registry was asked for {name}")


def avro_letter(dead: Dead) -> str:
    codec = dead.scene.client.codec
    codec.prepare(dead.scene.topic())
    event = ToolCall(
        event_id="e-1", run_id="run-1", sequence=3, occurred_at=1, agent="airline", tenant="acme", tool="pay", call_id="c",
        arguments='{"card": "4111 1111 1111 1111"}',
    )  # fmt: skip
    value = codec.encode(event, topic=dead.scene.topic())
    fingerprint = codec.fingerprint(dead.scene.topic(), value)
    return dead.die(
        1,
        key="run-1",
        value=value,
        more=[("pl.schema", fingerprint.encode())],
        message="card 4111 1111 1111 1111 refused",
    )


def test_with_the_registry_gone_values_are_shown_found_and_edited(
    dead: Dead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    position = avro_letter(dead)
    monkeypatch.setattr("pipeline.app.Pipeline.codec", AvroCodec(_NoRegistry()))  # type: ignore[arg-type]
    (shown,) = dead.json("show", position)
    assert shown["type"] == "agent.run.ToolCall"
    assert shown["value"]["tool"] == "pay"
    assert (shown["tenant"], shown["run_id"], shown["agent"]) == ("acme", "run-1", "airline")
    assert dead.json("list", "--tenant", "acme", "--type", "ToolCall")["total"] == 1
    assert dead.json("search", "--where", 'value.tool == "pay"')["dead_letters"]
    new = tmp_path / "new.json"
    new.write_text(json.dumps({**show_dead_letter(dead.app, (0, 0), group=GROUP, reveal=ANA).value, "tool": "refund"}))
    dead.run("edit", position, "--value", str(new), "--group", GROUP, *YES)
    assert dead.json("show", "0:1")[0]["value"]["tool"] == "refund"
    assert dead.json("show", "0:1")[0]["problem"] is None
    new.write_text(json.dumps({"tool": 7}))
    assert "ToolCall" in dead.run("edit", "0:1", "--value", str(new), "--group", GROUP, *YES, code=1)
    new.write_text(json.dumps({**json.loads((new.parent / "new.json").read_text()), "colour": "red"}))
    assert "no field colour" in dead.run("edit", "0:1", "--value", str(new), "--group", GROUP, *YES, code=1)


def test_tagged_fields_are_masked_unless_revealed_and_that_is_audited(dead: Dead, tmp_path: Path) -> None:
    position = avro_letter(dead)
    for text in (dead.run("show", position, "--group", GROUP), dead.run("show", position, "--group", GROUP, "--json")):
        assert "4111 1111" not in text, "neither in the value nor where the error quotes it"
    assert "--reason" in dead.run("show", position, "--reveal", "--group", GROUP, code=2)
    assert dead.audit() == []
    shown = dead.run("show", position, "--reveal", "--reason", "complaint 4711", "--group", GROUP)
    assert "4111 1111 1111 1111" in shown
    assert [(entry.action, entry.why) for entry in dead.audit()] == [("reveal", "complaint 4711")]
    path = tmp_path / "out.jsonl"
    dead.run("export", str(path), "--group", GROUP)
    assert "4111 1111" not in path.read_text()
    dead.run("export", str(path), "--reveal", "--reason", "backup", "--group", GROUP)
    assert "4111 1111" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert [entry.why for entry in dead.audit()] == ["complaint 4711", "backup"]


def test_a_container_holds_the_records_as_they_are(dead: Dead, tmp_path: Path) -> None:
    dead.die(1, key="a", value={"n": 1})
    dead.die(2, key="b", partition=1)
    path = tmp_path / "letters.avro"
    assert "--reveal" in dead.run("export", str(path), "--group", GROUP, code=2)
    assert not path.exists()
    dead.run("export", str(path), "--group", GROUP, "--reveal", "--reason", "before the topic is made anew")
    records = list(read_container(path, StoredRecord))
    assert [(r.place, r.key(), r.value(), r.headers()) for r in records] == [
        ((m.topic(), m.partition(), m.offset()), m.key(), m.value(), m.headers()) for m in dead.scene.dead()
    ]
    assert path.stat().st_mode & 0o077 == 0
    assert [entry.why for entry in dead.audit()] == ["before the topic is made anew"]


def test_what_was_exported_is_taken_back_by_a_replay(dead: Dead, tmp_path: Path) -> None:
    for n in range(3):
        dead.die(n, key=f"k{n}", value={"n": n})
    letters, plan = tmp_path / "letters.avro", tmp_path / "plan.json"
    dead.run("export", str(letters), "--group", GROUP, "--reveal", "--reason", "the topic is made anew")
    dead.scene.admin.delete_topics([dead.topic])
    for words in (
        ("plan", "--from-file", str(letters), "--group", GROUP, "--out", str(plan)),
        ("run", str(plan), "--yes", "--reason", "back from the file"),
    ):
        result = CliRunner().invoke(command, ["replay", *words])
        assert result.exit_code == 0, (words, result.output, result.exception)
    sent = dead.scene.read(dead.scene.lane("replay"))
    assert [(m.key(), json.loads(m.value() or b"")) for m in sent] == [(b"k%d" % n, {"n": n}) for n in range(3)]
    assert [decode(m.headers()).origin_offset for m in sent] == [0, 1, 2], "with the origin that they bear"


def test_two_commands_at_once_on_a_new_index(dead: Dead) -> None:
    for n in range(300):
        dead.die(n, key=f"k{n % 9}", partition=n % 2)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", "dlq", "stats", "--group", GROUP, "--json"], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    try:
        outs = [process.communicate(timeout=90 * PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, err) in zip(processes, outs, strict=True):
        assert process.returncode == 0, err
        assert json.loads(out)["total"] == 300


def test_threads_of_one_application_may_ask_at_once(dead: Dead) -> None:
    for n in range(50):
        dead.die(n)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(list_dead_letters(dead.app, group=GROUP, limit=100).letters)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [50] * 4


def test_a_topic_that_groups_share(dead: Dead) -> None:
    mine = dead.die(1)
    other = DeliveryHeaders(1, 1, 1, dead.scene.topic(), 0, 5, 1, "another", error=ErrorInfo("x", "y", "z"))
    dead.scene.publish("k", {}, dead_letter_headers([], other), 0, dead.topic[len(dead.scene.prefix) :])
    result = CliRunner().invoke(command, ["dlq", "list", "--topic", dead.topic, "--group", GROUP, "--json"])
    assert [x["position"] for x in json.loads(result.stdout)["dead_letters"]] == [mine]
    both = CliRunner().invoke(command, ["dlq", "redrive", "--all", "--topic", dead.topic, *YES, "--canary", "0"])
    assert both.exit_code == 2
    assert "several groups" in both.output
    assert Wanted().everything


def test_what_is_asked_wrongly_is_one_sentence_and_nothing_at_all_is_json_too(dead: Dead, tmp_path: Path) -> None:
    for n in range(3):
        dead.die(n, key="same")
    where = ("--group", GROUP)
    assert "no dead letters" in dead.run("search", "a\udcff", *where, code=1)
    assert "no dead letters" in dead.run("list", "--key", "a\udcff", *where)
    for target in (str(tmp_path), ".", ""):
        assert "is not a file to write" in dead.run("export", target, *where, code=2)
    assert not list(tmp_path.parent.glob("*.part"))
    assert "is not a position" in dead.run("show", f"0:{1 << 48}", *where, code=2)
    times = ("--from-time", "2026-01-02", "--to-time", "2026-01-01")
    assert "--to-time must be later" in dead.run("list", *times, *where, code=2)
    for action in (("purge",), ("cancel",), ("convert", "--to", "ana", "--task", "x")):
        shown = dead.run(*action, "--type", "Nothing", *where, "--json", *YES, code=1)
        assert set(json.loads(shown)["counts"].values()) == {0}
    assert json.loads(dead.run("redrive", "--type", "Nothing", *where, "--json", code=1))["end"] == "nothing to do"
    assert "2 older ones match too" in dead.run("show", "--key", "same", *where)
    assert dead.audit() == []


def test_the_audit_names_what_was_chosen(dead: Dead) -> None:
    position = dead.die(1, key="two words")
    dead.run("cancel", position, "--key", "two words", "--group", GROUP, *YES)
    (entry,) = dead.audit()
    assert entry.command == f"pipeline dlq cancel {position} --group {GROUP} --key 'two words'"
