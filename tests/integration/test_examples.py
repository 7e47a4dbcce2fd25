"""The programs in examples/, the README's twenty lines, and the compose file's commands, run as a user runs them: on real Kafka."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import until
from tests.patience import PATIENCE
from tests.unit.docs_reader import ROOT, Page

pytestmark = pytest.mark.first

EXAMPLES = ROOT / "examples"
PATIENCE_S = 60 * PATIENCE
PROGRAMS = {
    "support_bot.py",
    "billing.py",
    "batch_costs.py",
    "router.py",
    "sync_agent.py",
    "unit_test_example.py",
    "support_tickets.py",
}
TESTED_ELSEWHERE = {
    "record_run.py",
    "record_run_sync.py",
    "own_faust_agent.py",
    "agent_frameworks.py",
}


class Shell:
    """A shell in one folder, with the settings of one environment. Everything it starts ends with the test."""

    def __init__(self, kafka: str, prefix: str, folder: Path, **settings: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        self.environment = kept | {
            "PIPELINE_BROKER": kafka,
            "PIPELINE_PREFIX": prefix,
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        self.folder = folder
        self.prefix = prefix

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        program = (
            ["-c", "from pipeline.cli.main import run; run()", *words[1:]] if words[0] == "pipeline" else words[1:]
        )
        return subprocess.Popen(
            [sys.executable, *program], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, line: str, code: int = 0) -> str:
        """Standard output of a command that ends by itself."""
        process = self.start(shlex.split(line))
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == code, f"{line}: exit code {process.returncode}\n{out}\n{err}"
        return out

    def json(self, line: str) -> Any:
        return json.loads(self.run(f"{line} --json"))

    @contextmanager
    def running(self, line: str) -> Iterator[Callable[[], str]]:
        """A worker while the block runs; then a SIGTERM, which it must survive cleanly. Gives what to tell when it died early."""
        process = self.start(shlex.split(line))

        def tell() -> str:
            return "" if process.poll() is None else str(process.communicate())

        try:
            yield tell
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, f"{line}: exit code {process.returncode}\n{out}\n{err[-3_000:]}"
        finally:
            process.kill()
            process.wait()

    def settled(self, group: str) -> Callable[[], bool]:
        """Has the group finished everything that is in its topic?"""

        def answer() -> bool:
            found = self.json(f"pipeline groups lag {group} --fast")
            source = [row for row in found["rows"] if row["lane"] == "source"]
            return found["lag"] == 0 and any(row["committed"] for row in source)

        return answer


@pytest.fixture
def prefix(topic_name: str) -> str:
    return f"{topic_name[-14:]}."


@pytest.fixture
def shell(kafka: str, prefix: str) -> Shell:
    return Shell(kafka, prefix, EXAMPLES)


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PROGRAMS | TESTED_ELSEWHERE


def test_every_example_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        head = path.read_text(encoding="utf-8").split('"""')[1]
        assert re.search(r"pipeline run|python \S*" + path.name + "|pytest", head), path.name


@pytest.mark.timeout(180)
def test_support_bot_and_billing(shell: Shell) -> None:
    shell.run("pipeline topics apply billing:app --partitions 2")
    refund, _, gift_card = shell.run("python support_bot.py").split()
    with shell.running("pipeline run billing:app --processes 2") as tell:
        until("the runs are billed", shell.settled("billing"), PATIENCE_S, tell)
        until("the charges are booked", shell.settled("books"), PATIENCE_S, tell)
    charges = shell.run(f"pipeline tail {shell.prefix}billing.charges --from earliest --no-follow --json").splitlines()
    found = {charge["value"]["run"]: charge["value"]["dollars"] for charge in map(json.loads, charges)}
    assert len(found) == 2
    assert found[refund] == pytest.approx((1200 * 5 + 340 * 15) / 1e6)
    (letter,) = [
        each for each in shell.json(f"pipeline why {gift_card} --group billing")["found"] if each["state"] != "done"
    ]
    assert letter["state"] == "dead letter"
    assert "no price for model gpt-next" in letter["error"]


@pytest.mark.timeout(180)
def test_sync_agent_batch_costs_and_router(shell: Shell, tmp_path: Path) -> None:
    shell.run("pipeline topics apply batch_costs:app --partitions 2")
    shell.run("pipeline topics apply router:app")
    runs = shell.run(f"python sync_agent.py {tmp_path}").split()
    assert len(runs) == 4
    types = [
        json.loads(line)["type"]
        for line in shell.run(
            f"pipeline tail {shell.prefix}agent.run.events --from earliest --no-follow --json"
        ).splitlines()
    ]
    assert types.count("agent.run.RunFailed") == 1, "the task that divides by zero"
    assert types.count("agent.run.RunCompleted") == 3
    for name, group in (("batch_costs", "costs"), ("router", "quality")):
        with shell.running(f"pipeline run {name}:app") as tell:
            until(f"group {group} has finished", shell.settled(group), PATIENCE_S, tell)
        assert shell.json(f"pipeline groups lag {group}")["dead_letters"] == 0


@pytest.mark.timeout(180)
def test_support_tickets(shell: Shell) -> None:
    """The whole chain, as its page says it is run. What a production queue must show of it is in tests/unit/jobs."""
    shell.run("pipeline topics apply support_tickets:app --partitions 2")
    shell.environment["PIPELINE_PERMISSIONS"] = "articles:read"
    with shell.running("pipeline run support_tickets:app --processes 2"):
        out = shell.run("python support_tickets.py")
        again = shell.run("python support_tickets.py")
    answer = "0.9 About 'Where is my refund?': it was sent on Monday."
    assert [line.split(" ", 1)[1] for line in (out.strip(), again.strip())] == [answer] * 2
    assert out.split()[0] != again.split()[0], "two requests, one ticket"
    asked = shell.run(f"pipeline tail {shell.prefix}jobs.models --from earliest --no-follow --json").splitlines()
    assert len(asked) == 4, "classify twice, of which one is the same as the other; draft, evaluate"


@pytest.mark.timeout(60)
def test_sync_agent_without_a_broker_ends_and_says_where_its_events_are(tmp_path: Path) -> None:
    """Nothing listens there, and never has: schema ids are not known, so events are spooled as JSON, and none is lost."""
    shell = Shell("127.0.0.1:9", "", EXAMPLES)
    process = shell.start(["python", "sync_agent.py", str(tmp_path)])
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert len(out.split()) == 4
    spooled = sum(file.stat().st_size for file in tmp_path.rglob("*.seg"))
    assert "events are lost" not in err
    waiting = re.search(r"^(\d+) bytes wait in ", err, re.MULTILINE)
    assert waiting is not None, err
    assert spooled >= int(waiting[1]) > 1_000


def test_the_unit_test_example(tmp_path: Path) -> None:
    shell = Shell("memory://unused", "", tmp_path)
    assert "1 passed" in shell.run(f"python -m pytest -q -p no:cacheprovider {EXAMPLES / 'unit_test_example.py'}")
    assert "passed" in shell.run(f"python {EXAMPLES / 'unit_test_example.py'}")


@pytest.mark.timeout(180)
def test_the_readme(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Its programs as they stand there, with the commands that it gives for them."""
    page = Page(ROOT / "README.md")
    for block in page.blocks:
        if block.file:
            (tmp_path / block.file).write_text(block.body, encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"agent.py", "billing.py", "tickets.py", "ask.py"}
    shown, of_jobs = [block.body for block in page.blocks if block.language == "sh"]
    lines = [line.partition("#")[0].strip() for line in shown.splitlines()]
    assert [line.split()[:2] for line in lines] == [
        ["pipeline", "broker"], ["export", "PIPELINE_BROKER=127.0.0.1:9092"], ["pipeline", "topics"],
        ["python", "agent.py"], ["pipeline", "run"],
    ]  # fmt: skip
    shell = Shell(kafka, prefix, tmp_path)
    shell.run(lines[2])
    run_id = shell.run(lines[3]).strip()
    with shell.running(lines[4]) as tell:
        until("the run is billed", shell.settled("billing"), PATIENCE_S, tell)
    found = shell.json(f"pipeline why {run_id}")["found"]
    assert len(found) == 5, "RunStarted, ModelCall, ToolCall, ToolResult, RunCompleted"
    assert {each["state"] for each in found} == {"done"}

    apply, run, ask = [line.partition("#")[0].strip() for line in of_jobs.splitlines()]
    shell.run(apply)
    with shell.running(run):
        assert shell.run(ask).split()[1:] == ["refund"]


@pytest.mark.timeout(240)
def test_the_commands_of_the_compose_file(kafka: str, prefix: str, registry_server: Any) -> None:
    """In its order, with its settings, on the same Kafka and the same registry, but without containers."""
    yaml = pytest.importorskip("yaml", reason="PyYAML belongs to the test extra")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    path = services["worker"]["environment"]["PIPELINE_REGISTRY"].partition("8080")[2]
    assert registry_server.url.endswith(path), "the registry's path is the one that Apicurio has"
    shell = Shell(kafka, prefix, EXAMPLES, PIPELINE_REGISTRY=registry_server.url, PIPELINE_LOG_FORMAT="json")

    shell.run(shlex.join(["pipeline", *services["topics"]["command"]]))
    for line in services["contracts"]["command"][0].splitlines():
        shell.run(line)
    run_id = shell.run("python support_bot.py").split()[0]
    worker = ["pipeline", *services["worker"]["command"]]
    worker[worker.index("9100")] = "0"  # any free port: 9100 may be taken here
    with shell.running(shlex.join(worker)) as tell:
        until("the runs are billed", shell.settled("billing"), PATIENCE_S, tell)
    views = ["pipeline", *services["views"]["command"]]
    views[views.index("9100")] = "0"
    with shell.running(shlex.join(views)) as tell:

        def summarised() -> bool:
            words = f"pipeline tail {prefix}agent.run.summaries --key {run_id} --from earliest --no-follow --json"
            process = shell.start(shlex.split(words))
            out, _ = process.communicate(timeout=PATIENCE_S)
            return any(json.loads(line)["value"]["state"] == "COMPLETED" for line in out.splitlines())

        until("the run's summary says that it is completed", summarised, PATIENCE_S, tell)
