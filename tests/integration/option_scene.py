"""What the tests of replay options share: real runs on a topic, dead letters that a worker made of some, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from pipeline import Pipeline, Reject
from pipeline.cli.main import app as command
from pipeline.emit.openai_chat import ImportOptions
from pipeline.emit.transcripts import read_runs
from pipeline.inspect.decoding import show
from pipeline.model.cluster import Message
from pipeline.model.headers import decode
from pipeline.topology import Defaults, apply
from tests.integration.harness import GROUP, ROOT, SOURCE, Scene, running, until_async
from tests.integration.replays import Replays, read_container

PARTITIONS = 3
RUNS = 6
"""Of each of two tenants; and one run more, whose events have steps."""
STEPPED = "run-with-steps"
COPIES = "copies"
APP = f"""
from pipeline import Pipeline

app = Pipeline("copying")


@app.subscribe("{COPIES}", group="copying")
async def handle(event, ctx): ...
"""

Place = tuple[int, int]
Places = set[Place]


@dataclass(frozen=True)
class Row:
    """A record as it was read back: nothing of what chooses records has touched it."""

    place: Place
    key: str
    at_ms: int
    kind: str
    value: Mapping[str, Any]
    headers: Mapping[str, bytes | None]
    message: Message


class RateLimit(Exception):
    """What the handler says of runs that failed."""


class Options:
    """Topic `events` with real runs of two tenants, all processed by group `g`, and its dead letters."""

    def __init__(self, scene: Scene, real_runs: Path) -> None:
        self.scene = scene
        self.replays = Replays(scene)
        self.environment = {"PIPELINE_BROKER": scene.bootstrap, "PIPELINE_PREFIX": scene.prefix}
        self.environment |= {"PIPELINE_SESSION_TIMEOUT_S": "3"}
        self.process_environment = {**os.environ, **self.environment, "PYTHONPATH": str(ROOT)}
        self.app = self._declare()
        self._worker = self._application()
        apply(scene.admin, self._worker.subscriptions, Defaults(partitions=PARTITIONS), scene.prefix)
        for tenant in ("acme", "globex"):
            words = ("--topic", SOURCE, "--runs", str(RUNS), "--tenant", tenant, "--source", tenant, "--json")
            imported = json.loads(self.cli("import", "openai-chat", str(real_runs), *words).stdout)
            assert imported["runs"] == RUNS
        self.cli("emit", "--topic", SOURCE, "--json", stdin=stepped(real_runs))
        self.rows = self.read(scene.topic())
        self._process_all()
        self.letters = self.read(scene.lane("dlq"))

    def _declare(self) -> str:
        """Another application, by MODULE:APP: what it reads is a topic of its own."""
        module = f"copying_{uuid.uuid4().hex[:10]}"
        (self.scene.folder / f"{module}.py").write_text(APP)
        self.cli("topics", "apply", f"{module}:app", "--partitions", str(PARTITIONS))
        self.cli("schemas", "register", COPIES)
        return f"{module}:app"

    def _application(self) -> Pipeline:
        """Kills two sorts of events, for two reasons."""
        app = self.scene.app()

        @app.subscribe(SOURCE, group=GROUP, tiers=(), attempts=1)
        async def handle(event: Any, ctx: Any) -> None:
            kind = type(event).__name__
            if kind == "ToolCall" and event.tool.startswith("get_"):
                raise Reject("no reading")
            if kind == "RunFailed":
                raise RateLimit("too many failed runs")

        return app

    def _process_all(self) -> None:
        async def session() -> None:
            async with running(self._worker):
                await until_async("all is processed", self.scene.settled, 60)

        asyncio.run(session())

    # -- the command line

    def cli(self, *words: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner(env=self.environment).invoke(command, list(words), input=stdin)
        assert result.exit_code == code, (words, result.output, result.exception)
        return result

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.cli(*words, "--json", code=code).stdout.splitlines()[-1])

    def plan(self, *words: str, code: int = 0) -> Any:
        """A plan's file and what it says of itself."""
        return self.json("replay", "plan", *words, "-o", str(self.scene.folder / f"{uuid.uuid4().hex}.json"), code=code)

    def run(self, *words: str, code: int = 0) -> Any:
        """Planned and carried out: what the run said at its end, and the preview."""
        plan = self.plan(*words)
        done = self.json("replay", "run", plan["file"], "--yes", "--reason", "a test", code=code)
        assert done["plan"] == plan["plan_id"]
        return {**done, "preview": plan["preview"]}

    def chosen(self, *words: str) -> Places:
        """What these options choose: the places of the records that a run really writes, each once."""
        file = self.scene.folder / f"{uuid.uuid4().hex}.avro"
        done = self.run(*words, "--to-file", str(file))
        places = [(record["partition"], record["offset"]) for record in read_container(file)]
        assert len(set(places)) == len(places) == done["done"] == done["preview"]["selected"]
        assert done["state"] == "finished"
        return set(places)

    def copies(self, plan_id: str, topic: str) -> list[tuple[Place, Message]]:
        """What one plan wrote on a topic: (where it comes from, the copy), in order of each partition."""
        found = self.replays.copies(topic)
        return [((d.origin_partition, d.origin_offset), m) for m, d in found if d.replay_id == plan_id]

    # -- what is there

    @staticmethod
    def replay_of(row: Row) -> str:
        return decode(row.message.headers()).replay_id

    def read(self, topic: str) -> list[Row]:
        codec, found = self.scene.client.codec, []
        for message in self.scene.read(topic):
            shown = show(codec, message)
            assert isinstance(shown.value, dict), shown.problem
            key = (message.key() or b"").decode()
            place, at_ms = (message.partition(), message.offset()), message.timestamp()[1]
            headers = dict(message.headers() or ())
            found.append(Row(place, key, at_ms, shown.type.rpartition(".")[2], shown.value, headers, message))
        return found


def where(rows: Iterable[Row], wanted: Callable[[Row], Any]) -> Places:
    """The naive answer: each record is asked. It has to choose some and leave some out."""
    every = list(rows)
    found = {row.place for row in every if wanted(row)}
    assert 0 < len(found) < len(every), (len(found), len(every))
    return found


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds")


def stepped(path: Path) -> str:
    """A real run as JSON lines, with a step begun by each fifth event: transcripts have none."""
    (run, _), *_ = islice(read_runs(path, ImportOptions("steps")), RUNS, RUNS + 1)
    lines = [
        event.model_dump(mode="json") | {"type": type(event).__name__, "run_id": STEPPED, "step": number // 5}
        for number, event in enumerate(run.events)
    ]
    return "\n".join(map(json.dumps, lines))
