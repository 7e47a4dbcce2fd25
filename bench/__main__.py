"""`python -m bench [--only NAME ...] [--records N] [--quick] [--json] [--out FILE] [--svg FILE]`: everything in one run on one broker."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import (
    behaviour,
    cells,
    costs,
    dead_letters,
    jobs,
    machine,
    plot,
    replay,
    report,
    restoring,
    standing,
    throughput,
)
from bench.events import application, encoded, load
from bench.lab import Lab, MeasureError, Row
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.model.errors import PipelineError

TOPIC = "bench.events"
RECORDS, QUICK_RECORDS = 200_000, 60_000
MEMORY_RECORDS, QUICK_MEMORY_RECORDS = 1_000_000, 200_000

SECTIONS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "dict": lambda lab: throughput.handlers(lab, "dict"),
    "typed": lambda lab: throughput.handlers(lab, "typed"),
    "suspend": throughput.suspended,
    "wait": throughput.waiting,
    "cells": cells.rows,
    "delivery": throughput.delivery,
    "produce": throughput.producing,
    "latency": behaviour.latency,
    "lateness": behaviour.lateness,
    "tiers": behaviour.tiers,
    "parking": behaviour.parking,
    "standing": standing.rows,
    "restore": restoring.rows,
    "keys": costs.by_keys,
    "partitions": costs.by_partitions,
    "flight": costs.in_flight,
    "memory": behaviour.memory,
    "replay": replay.rows,
    "dead-letters": dead_letters.rows,
    "jobs": jobs.rows,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Speed and memory, as ratios to bare loops.")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--records", type=int, help=f"records per throughput measurement ({RECORDS:,})")
    parser.add_argument("--rounds", type=int, default=0, help="times that both sides run, by turns (3, quick: 1)")
    parser.add_argument("--quick", action="store_true", help="smaller: 6 to 8 minutes on two cores, noisier")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument(
        "--out", type=Path, help="write that object to this file: what `python -m bench.plot` makes a page of"
    )
    parser.add_argument("--svg", type=Path, help="also draw the ratios")
    parser.add_argument("--broker", default="", help="measure on this Kafka instead of an embedded one")
    parser.add_argument("--quix-python", default="", help="an interpreter that has quixstreams, to measure that too")
    return parser.parse_args()


def measure(lab: Lab, names: list[str], memory_records: int, console: Console) -> list[Row]:
    rows: list[Row] = []
    pairs = encoded(application(lab.bootstrap).codec, lab.topic, lab.records)
    size = load(lab.bootstrap, lab.topic, pairs)
    console.print(f"{lab.records:,} events of {size} bytes, 12 partitions, 5,000 keys")
    for name in names:
        began = time.monotonic()
        where = lab
        if name in ("memory", "replay"):
            rounds = lab.rounds if name == "replay" else 1
            where = Lab(lab.bootstrap, lab.new_topic("flat"), memory_records, lab.quick, rounds, say=lab.say)
            headers = replay.HEADERS if name == "replay" else ()
            load(lab.bootstrap, where.topic, pairs, max(1, memory_records // len(pairs)), headers)
        try:
            for row in SECTIONS[name](where):
                rows.append(replace(row, section=name))
                console.print(
                    f"  {row.name}: {report.number(row.ratio)} (reach {row.reach})", style="dim", markup=False
                )
        except (MeasureError, PipelineError) as error:
            rows.append(Row(name, name, None, "-", False, note=f"not measured: {error}", section=name))
        console.print(f"{name}: {time.monotonic() - began:.0f} s")
    return rows


def command(options: argparse.Namespace) -> str:
    """What to type for this run; no addresses and no paths of this machine."""
    words = ["--only", *options.only] if options.only else []
    words += [f"--{name} {value}" for name in ("records", "rounds") if (value := getattr(options, name))]
    words += [word for word, wanted in (("--quick", options.quick), ("--broker HOST:PORT", options.broker)) if wanted]
    words += ["--quix-python PYTHON"] if options.quix_python else []
    return f'make bench ARGS="{" ".join(words)}"' if words else "make bench"


def as_run(options: argparse.Namespace, where: dict[str, Any], seconds: float, rows: list[Row]) -> dict[str, Any]:
    """The whole run as one JSON object."""
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "command": command(options), "seconds": round(seconds)}
    return {**about, "machine": where, "rows": [row.as_json() for row in rows]}


def main() -> int:
    options = arguments()
    console = Console(stderr=options.json)
    if not console.is_terminal:
        console = Console(stderr=options.json, width=190)
    records = options.records or (QUICK_RECORDS if options.quick else RECORDS)
    memory_records = QUICK_MEMORY_RECORDS if options.quick else MEMORY_RECORDS
    memory_records -= memory_records % records if memory_records > records else 0
    rounds = options.rounds or (1 if options.quick else 3)
    began, where = time.monotonic(), machine.described(not options.broker)
    with contextlib.ExitStack() as stack:
        bootstrap = options.broker
        if not bootstrap:
            broker = EmbeddedBroker()
            stack.callback(broker.stop)
            broker.start()
            bootstrap = broker.bootstrap
        lab = Lab(bootstrap, TOPIC, records, options.quick, rounds, options.quix_python)
        lab.topic = lab.new_topic("events")
        lab.say = lambda text: console.print(f"    {text}", style="dim", markup=False)
        rows = measure(lab, options.only or list(SECTIONS), max(memory_records, records), console)
    report.print_table(console, rows)
    run = as_run(options, where, time.monotonic() - began, rows)
    console.print(f"{run['seconds']} s in all, on {machine.sentence(where)}")
    if options.svg is not None:
        options.svg.write_text(plot.drawings([run]).get("ratios", ""), encoding="utf-8")
    if options.out is not None:
        options.out.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
