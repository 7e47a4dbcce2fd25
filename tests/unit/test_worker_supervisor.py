"""The supervisor of `pipeline run --processes`, with stand-in commands in place of workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline import Context, FlowPolicy, Pipeline, Settings
from pipeline.model.errors import ConfigurationError
from pipeline.model.restarts import RestartPolicy, ending
from pipeline.topology import Defaults, apply
from pipeline.worker import process
from pipeline.worker import supervisor as supervisor_module
from pipeline.worker.process import ProcessSpec
from pipeline.worker.supervisor import RESTARTS, Command, Supervisor

QUICK = RestartPolicy(first_s=0.01, max_s=0.05, limit=3, steady_s=60, ready_s=0.5)


@pytest.fixture
def said() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def keep(_logger: Any, _name: str, event: dict[str, Any]) -> str:
        lines.append(dict(event))
        return ""

    structlog.configure(processors=[keep], logger_factory=structlog.ReturnLoggerFactory())
    return lines


def python(code: str) -> Command:
    return lambda index, ready: [
        sys.executable,
        "-S",
        "-c",
        f"index, ready = {index}, {ready}\n{textwrap.dedent(code)}",
    ]


def supervisor(
    command: Command, restarts: RestartPolicy = QUICK, processes: int = 1, grace_s: float = 5.0
) -> Supervisor:
    return Supervisor(ProcessSpec("m:app"), processes, grace_s, restarts, command)


def stopped_when(condition: Callable[[], Any], deadline_s: float = 30.0) -> threading.Thread:
    """SIGTERM to this process, which the supervisor handles, as soon as something holds."""

    def wait() -> None:
        end = time.monotonic() + deadline_s
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def signals() -> Any:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("code", "words"),
    [(7, "ended by exit code 7"), (-9, "killed by SIGKILL"), (-11, "killed by SIGSEGV"), (-63, "killed by signal 63")],
)
def test_an_end_is_named(code: int, words: str) -> None:
    assert ending(code) == words


def test_waits_double_up_to_the_longest_with_jitter_taken_off() -> None:
    assert [RESTARTS.wait_s(n) for n in (1, 2, 3, 7, 8, 10_000)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert RESTARTS.wait_s(3, 0.5) == pytest.approx(1.8)
    assert RESTARTS.limit == 0, "workers are started again for as long as it takes"


def test_it_gives_up_after_so_many_crashes_in_a_row_and_names_each(said: list[dict[str, Any]]) -> None:
    assert supervisor(python("import os; os.kill(os.getpid(), 11)")).run() == 1
    ends = [line for line in said if "how" in line]
    assert [line["crashes"] for line in ends] == [1, 2, 3]
    assert {line["how"] for line in ends} == {"killed by SIGSEGV"}
    assert said[-1]["event"].endswith("giving up")


def test_it_waits_before_it_starts_one_again(said: list[dict[str, Any]]) -> None:
    crew = supervisor(python("import os; os._exit(1)"), RestartPolicy(first_s=60, max_s=600, limit=0))
    (child,) = crew._children
    for began_s, wait_s in ((0.0, 60.0), (1_000.0, 120.0)):
        crew._look_after(child, began_s)
        assert child.process is not None
        child.process.wait(30)
        for at_s in (0.0, wait_s - 1):
            crew._look_after(child, began_s + at_s)
            assert child.process is None
    crew._look_after(child, 1_120.0)
    assert child.process is not None
    crew.stop_all()
    assert [line["in_s"] for line in said if "in_s" in line] == [60.0, 120.0]


def test_a_steady_process_starts_a_new_row(said: list[dict[str, Any]]) -> None:
    policy = RestartPolicy(first_s=0.01, max_s=0.05, limit=3, steady_s=0.05, ready_s=5)
    thread = stopped_when(lambda: len([line for line in said if "how" in line]) >= 5)
    assert (
        supervisor(python("import os, time; os.write(ready, b'ready'); time.sleep(0.2); os._exit(1)"), policy).run()
        == 0
    )
    thread.join()
    assert {line["crashes"] for line in said if "how" in line} == {1}


def test_one_that_is_never_ready_is_killed_and_counts_as_a_crash(said: list[dict[str, Any]]) -> None:
    assert supervisor(python("import time; time.sleep(60)")).run() == 1
    assert [line["how"] for line in said if "how" in line] == ["killed by SIGKILL"] * 3
    assert sum("not ready in time" in line["event"] for line in said) == 4


def test_wrong_configuration_ends_it_at_once() -> None:
    assert supervisor(python("import os; os._exit(2)")).run() == 2


@pytest.mark.parametrize(("raised", "code"), [("MemoryError", 1), ("ValueError", 2)])
def test_no_memory_while_the_application_is_imported_is_no_wrong_configuration(
    tmp_path: Path, raised: str, code: int
) -> None:
    """Code 2 stops all the others too, and this one would start in the next moment."""
    (tmp_path / "poor_app.py").write_text(f"raise {raised}()\n")
    command = [sys.executable, "-m", "pipeline.worker.process", str(os.getpid()), "poor_app:app", "0", "-", "127.0.0.1"]
    assert subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, timeout=60).returncode == code


@pytest.mark.parametrize(("raised", "told"), [(MemoryError, MemoryError), (ValueError, ConfigurationError)])
def test_no_memory_at_an_import_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception], told: type[Exception]
) -> None:
    name = f"poor_app_{raised.__name__}"
    (tmp_path / f"{name}.py").write_text(f"raise {raised.__name__}()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(told):
        process.load(f"{name}:app")


def test_sigterm_while_one_waits_for_its_restart_stops_the_others_in_order(said: list[dict[str, Any]]) -> None:
    slow = RestartPolicy(first_s=60, max_s=60, limit=0, ready_s=60)
    code = """
        import os, signal, sys, time
        if index: os._exit(3)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        os.write(ready, b"ready")
        time.sleep(60)
    """
    crew = supervisor(python(code), slow, processes=2)
    thread = stopped_when(lambda: any("how" in line for line in said) and crew._children[0].ready)
    began = time.monotonic()
    assert crew.run() == 0
    thread.join()
    assert time.monotonic() - began < 30, "it did not wait for the restart"
    assert crew.pids == {}


def test_one_that_ignores_sigterm_is_killed_in_the_end(said: list[dict[str, Any]]) -> None:
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(ready, b'ready'); time.sleep(60)"
    crew = supervisor(python(code), RestartPolicy(limit=0, ready_s=30), grace_s=0.3)
    thread = stopped_when(lambda: crew._children[0].ready)
    assert crew.run() == 0
    thread.join()
    assert said[-1]["event"] == "worker process did not stop in time: killed"
    assert crew.pids == {}


def test_one_that_drains_has_the_time_that_it_said_it_may_take(
    said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after 40 s, whatever `drain_timeout_ms` was: its handlers ran twice, and it counted as an owner that died."""
    monkeypatch.setattr(supervisor_module, "MARGIN_S", 5.0)
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(0)))
        os.write(ready, b"ready 1000\\n")
        time.sleep(60)
    """
    crew = supervisor(python(code), RestartPolicy(limit=0, ready_s=30), processes=2, grace_s=0.1)
    thread = stopped_when(lambda: all(child.ready for child in crew._children))
    assert crew.run() == 0
    thread.join()
    assert said == []


def test_a_worker_says_how_long_its_longest_drain_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async def said_by(app: Pipeline) -> bytes:
        apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
        heard, ready = os.pipe()
        serving = asyncio.ensure_future(process._serve(app, ProcessSpec("m:app", ready_fd=ready)))
        with open(heard, "rb") as pipe:
            line = await asyncio.to_thread(pipe.readline)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await serving == 0
        return line

    monkeypatch.setattr(process, "relax", lambda: None)
    for poll_s, line in ((300.0, b"ready 120000\n"), (100.0, b"ready 80000\n")):
        app = Pipeline("app", settings=Settings(broker=f"memory://drain-{poll_s}", max_poll_interval_s=poll_s))
        for topic, flow in (("a", FlowPolicy()), ("b", FlowPolicy(drain_timeout_ms=120_000)), ("c", FlowPolicy())):
            app.subscribe(topic, group=topic, value="bytes", flow=flow)(_handler)
        assert asyncio.run(said_by(app)) == line, "no longer than a member may go without a poll"


async def _handler(_value: bytes, _ctx: Context) -> None: ...


def test_the_command_of_a_worker_names_what_it_runs() -> None:
    spec = ProcessSpec("m:app", ("a", "b"), metrics_port=9100)
    words: Sequence[str] = Supervisor(spec, 1)._worker(3, 17)
    assert words[1:] == [
        "-m",
        "pipeline.worker.process",
        str(os.getpid()),
        "m:app",
        "3",
        "9100",
        "127.0.0.1",
        "a",
        "b",
        "--ready=17",
    ]
    assert subprocess.list2cmdline(words)


def test_a_process_that_can_not_be_started_is_tried_again(
    said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory just after a worker died of it: the supervisor ended, and with it all the others."""
    tries: list[int] = []
    start = subprocess.Popen

    def short_of_memory(*arguments: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(12, "Cannot allocate memory")
        return start(*arguments, **named)

    monkeypatch.setattr(subprocess, "Popen", short_of_memory)
    boss = supervisor(python("import os, time\nos.write(ready, b'ready\\n')\ntime.sleep(60)"))
    before = len(os.listdir("/proc/self/fd"))
    thread = stopped_when(lambda: boss.pids and boss._children[0].ready)
    assert boss.run() == 0
    thread.join()
    assert len(tries) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "the pipe of the first try is closed"
    assert any("can't be started" in line["event"] for line in said)


def test_a_status_port_that_is_taken_is_found_out_before_the_group_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends after it has joined counts as an owner that died: three of those, and records run alone that did nothing."""
    started: list[int] = []

    class Worker:
        def __init__(self, *_arguments: object) -> None: ...

        async def start(self) -> None:
            started.append(1)

    monkeypatch.setattr("pipeline.worker.worker.Worker", Worker)
    with socket.create_server(("127.0.0.1", 0)) as other:
        spec = ProcessSpec("m:app", metrics_port=other.getsockname()[1])
        app: Any = SimpleNamespace(name="app")
        with pytest.raises(OSError, match="in use"):
            asyncio.run(process._serve(app, spec))
    assert not started


def test_a_worker_whose_supervisor_died_while_it_started_stops_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears any more that it is ready: the broken pipe ended it with its partitions in its hands."""
    stopped: list[int] = []

    class Worker:
        drain_ms = 20_000

        def __init__(self, *_arguments: object) -> None: ...

        async def start(self) -> None:
            self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def stop(self) -> None:
            stopped.append(1)

    monkeypatch.setattr("pipeline.worker.worker.Worker", Worker)
    monkeypatch.setattr(process, "relax", lambda: None)
    monkeypatch.setattr(process, "PARENT_CHECK_S", 0.01)
    heard, ready = os.pipe()
    os.close(heard)
    app: Any = SimpleNamespace(name="app")
    assert asyncio.run(process._serve(app, ProcessSpec("m:app", parent_pid=1 << 30, ready_fd=ready))) == 0
    assert stopped
