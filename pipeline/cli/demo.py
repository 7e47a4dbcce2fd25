"""`pipeline demo`: the main job on a real Kafka, with a worker killed in the middle and an account of every record."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.cli.output import clean, emit_json

if TYPE_CHECKING:
    from pipeline.demo.feed import Load
    from pipeline.demo.screen import Screen

app = typer.Typer(rich_markup_mode=None, add_completion=False)

SKIPPED_SHOWN = 5
KEEP_CHECK_S = 0.5


@app.command()
def demo(
    file: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Transcripts in OpenAI chat format (JSONL or JSON, plain or .gz).", metavar="FILE"
        ),
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="So many agent runs; all of FILE, or 1000.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the simulated agents.")] = 1,
    broker: Annotated[
        str | None,
        typer.Option("--broker", help="Use this Kafka and not an embedded one.", metavar="ADDRESS"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object; progress on standard error.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave Kafka (until Ctrl-C) or, with --broker, the topics, to look at.")
    ] = False,
) -> None:
    """Publish agent runs on a real Kafka, process them in two groups of two workers, kill one worker, account for every record.

    Without --input a simulated fleet of agents publishes, with failing, slow and poison events. Exit code 0 only when the topics,
    read back, show every record processed or dead-lettered, once and in order.

    Example: pipeline demo --input transcripts.jsonl.gz --runs 50
    """
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    from pipeline.demo.run import Demo, DemoOptions, open_place
    from pipeline.demo.screen import open_screen
    from pipeline.settings import Settings

    screen = open_screen(sys.stderr if as_json else sys.stdout, quiet_end=as_json)
    options = DemoOptions(broker, f"demo-{uuid.uuid4().hex[:8]}." if broker else "", keep=keep)
    load = _load(file, runs, seed, screen)
    try:
        with open_place(options, screen, Settings.load().maven_mirror or None) as place:
            report = Demo(place, load, screen, options).run(started)
            screen.finish(report)
            if keep and broker is None:
                _wait(place.broker, screen)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # all is stopped; what is left is to say so
        screen.close()
    if as_json:
        emit_json(report.as_dict())
    if not report.ok:
        raise typer.Exit(1)


def _load(file: Path | None, runs: int | None, seed: int, screen: Screen) -> Load:
    from pipeline.demo.feed import RECORDS_MAX, imported, simulated

    if file is None:
        load = simulated(runs, seed, int(time.time() * 1000))
    else:
        from pipeline.cli.import_ import source_name

        load = imported(file.expanduser().absolute(), source_name(file), runs, seed)
        screen.say(f"{clean(file)}: {load.runs} runs, {len(load.records)} events, {len(load.skipped)} things skipped")
        for item in load.skipped[:SKIPPED_SHOWN]:
            screen.say(
                f"  skipped: line {item.line}: {clean(item.path) + ': ' if item.path else ''}{clean(item.reason)}"
            )
    if load.cut:
        screen.say(f"  that is more than the demo keeps an account of: it takes the first {RECORDS_MAX} records or so")
    return load


def _wait(address: str, screen: Screen) -> None:
    screen.say(f"Kafka stays at {address} until Ctrl-C: try PIPELINE_BROKER={address} pipeline groups list")
    try:
        while True:
            time.sleep(KEEP_CHECK_S)
    except KeyboardInterrupt:
        screen.say("stopping Kafka")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
