"""`pipeline broker`: run a real Kafka (and a schema registry) on this machine, in the foreground or detached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.cli import output

if TYPE_CHECKING:
    from pipeline.kafka.embedded import EmbeddedBroker, EmbeddedRegistry, Progress
    from pipeline.kafka.embedded.running import Running

app = typer.Typer(
    name="broker",
    help="Start, stop and show the embedded Kafka: no Docker, no Java installed.",
    no_args_is_help=True,
)

_DETACHED_START_S = 180.0
_WATCH_S = 0.5

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Keep data here over restarts. Default: temporary, removed at the stop."),
]
StartedDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The directory that it was started with, if it was with one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command()
def start(
    nodes: Annotated[int, typer.Option(help="1, or 3 (replication 3: one node may die).")] = 1,
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(help="Port of the first node. Default: a free one.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it answers; it runs on until `stop`.")] = False,
    registry: Annotated[bool, typer.Option("--registry", help="Also start a schema registry.")] = False,
    mirror: Annotated[
        str | None,
        typer.Option(help="Maven repository to download from the first time; PIPELINE_MAVEN_MIRROR when not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start Kafka on loopback and print its address. Ctrl-C or `pipeline broker stop` ends it.

    Example: pipeline broker start --nodes 3 --detach
    """
    from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker, EmbeddedRegistry
    from pipeline.kafka.embedded.running import claim
    from pipeline.settings import Settings

    mirror = mirror or Settings.load().maven_mirror or None
    broker = EmbeddedBroker(BrokerSpec(nodes=nodes, data_dir=data_dir, port=port), mirror=mirror)
    registry_dir = data_dir / "registry" if data_dir else None
    schemas = EmbeddedRegistry(data_dir=registry_dir, mirror=mirror) if registry else None
    state_dir = _state_dir(data_dir)
    with _progress() as progress:
        broker.prepare(progress)
        if schemas:
            schemas.prepare(progress)
    if detach:
        options = {"--nodes": nodes, "--data-dir": data_dir, "--port": port, "--mirror": mirror}
        arguments = [text for name, value in options.items() if value is not None for text in (name, str(value))]
        running = _start_detached(state_dir, [*arguments, *(["--registry"] if registry else [])])
        _announce(running, as_json, data_dir, detached=True)
        return
    with claim(state_dir) as held:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            running = _start_servers(broker, schemas)
            held.publish(running)
            _announce(running, as_json, data_dir, detached=False)
            _watch(broker, schemas)
        except KeyboardInterrupt:
            output.note("stopping", style="dim")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave the stop half done
            if schemas:
                schemas.close()
            broker.stop()


@app.command()
def stop(
    data_dir: StartedDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds for a clean stop before it is killed.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Stop the broker that runs for this directory (or for this user). Exit code 1 when none runs.

    Example: pipeline broker stop
    """
    from pipeline.kafka.embedded.running import find
    from pipeline.kafka.embedded.running import stop as stop_running

    state_dir = _state_dir(data_dir)
    running = find(state_dir)
    if running is None:
        _none_runs(as_json)
    clean = stop_running(state_dir, running, timeout)
    if as_json:
        output.emit_json({"stopped": running.bootstrap, "clean": clean})
    else:
        output.line(f"stopped {running.bootstrap}" + ("" if clean else " (it had to be killed)"))


@app.command()
def status(data_dir: StartedDir = None, as_json: AsJson = False) -> None:
    """Show the broker that runs for this directory (or for this user). Exit code 0 when it runs, 1 when not.

    Example: pipeline broker status --json
    """
    from pipeline.kafka.embedded.running import find

    running = find(_state_dir(data_dir))
    if running is None:
        _none_runs(as_json)
    _announce(running, as_json, data_dir, detached=True)


def _state_dir(data_dir: Path | None) -> Path:
    from pipeline.kafka.embedded.running import default_state_dir

    return data_dir.expanduser().resolve() if data_dir else default_state_dir()


def _none_runs(as_json: bool) -> NoReturn:
    if as_json:
        output.emit_json({"running": False})
    else:
        output.line("no broker runs here; start one with `pipeline broker start`")
    raise typer.Exit(1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _start_servers(broker: EmbeddedBroker, schemas: EmbeddedRegistry | None) -> Running:
    from pipeline.kafka.embedded.running import Running

    broker.start()
    if schemas:
        schemas.start()
    return Running(
        pid=os.getpid(),
        bootstrap=broker.bootstrap,
        node_pids={str(node_id): pid for node_id, pid in broker.node_pids.items()},
        data_dir=str(broker.data_dir),
        registry=schemas.url if schemas else None,
        started_at_ms=int(time.time() * 1000),
    )


def _watch(broker: EmbeddedBroker, schemas: EmbeddedRegistry | None) -> NoReturn:
    """Until a signal; says when a server ends by itself, and leaves with 3 when no node is left."""
    alive = dict(broker.node_pids)
    registry_pid = schemas.pid if schemas else None
    while True:
        time.sleep(_WATCH_S)
        for node_id in alive.keys() - broker.node_pids.keys():
            output.note(f"node {node_id} (process {alive.pop(node_id)}) ended; its log is below {broker.data_dir}")
        if schemas and registry_pid and schemas.pid is None:
            output.note(f"the registry (process {registry_pid}) ended")
            registry_pid = None
        if not alive:
            raise typer.Exit(3)


def _start_detached(state_dir: Path, arguments: list[str]) -> Running:
    """The same command in a session of its own; returns when it has published its address."""
    from pipeline.kafka.embedded.running import find, is_claimed
    from pipeline.model.errors import BrokerStartError, ConfigurationError

    if is_claimed(state_dir):
        raise ConfigurationError(f"A broker already runs for {state_dir}; stop it first (`pipeline broker stop`).")
    state_dir.mkdir(parents=True, exist_ok=True)
    log = state_dir / "broker.log"
    program = [sys.executable, "-c", "from pipeline.cli.main import run; run()", "broker", "start", *arguments]
    with log.open("wb") as out:
        owner = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + _DETACHED_START_S
    try:
        while (running := find(state_dir)) is None or running.pid != owner.pid:
            if owner.poll() is not None:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise BrokerStartError(said[-1].removeprefix("Error: ") if said else f"The broker ended; see {log}.")
            if time.monotonic() > deadline:
                raise BrokerStartError(f"The broker did not answer within {_DETACHED_START_S:.0f} s; see {log}.")
            time.sleep(_WATCH_S / 10)
    except BaseException:
        owner.terminate()
        raise
    return running


def _announce(running: Running, as_json: bool, data_dir: Path | None, *, detached: bool) -> None:
    if as_json:
        output.emit_json({"running": True, **asdict(running)})
        return
    nodes = ", ".join(f"{node_id} (process {pid})" for node_id, pid in running.node_pids.items())
    output.line(f"Kafka answers at {running.bootstrap}", style="bold green")
    output.line(f"  nodes      {nodes}")
    output.line(f"  data       {running.data_dir}" + ("" if data_dir else " (removed at the stop)"))
    if running.registry:
        output.line(f"  registry   {running.registry}")
    output.line(f"  use it     export PIPELINE_BROKER={running.bootstrap}")
    if running.registry:
        output.line(f"             export PIPELINE_REGISTRY={running.registry}")
    where = f" --data-dir {data_dir}" if data_dir else ""
    output.line(f"  stop it    pipeline broker stop{where}" + ("" if detached else "   (or Ctrl-C)"))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal, one line elsewhere, nothing when the cache is full; all on standard error."""
    if not sys.stderr.isatty():
        said: list[str] = []

        def say_once(what: str, _done_bytes: int, total_bytes: int) -> None:
            if not said:
                said.append(what)
                output.note(f"downloading {total_bytes / 1e6:.0f} MB into the cache (only this once)")

        yield say_once
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[int, TaskID] = {}  # one bar per download, told apart by its size

        def draw(what: str, done_bytes: int, total_bytes: int) -> None:
            if total_bytes not in tasks:
                tasks[total_bytes] = bar.add_task(what, total=total_bytes)
            bar.update(tasks[total_bytes], completed=done_bytes, description=what)

        yield draw
