"""Dead letters (also `python -m bench.dead_letters [--letters N]`): how fast their index is built, and how long its answers take.

The letters are made while they are read (nothing of Kafka is in the figures), as a worker writes them: 21 headers and an Avro
value that is decoded for its tenant. Making one costs about as much as indexing it, so it is taken off by CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.lab import Lab, MeasureError, Row
from bench.synthetic_letters import DLQ, RESULTS, START_MS, SyntheticCluster, maker, registered
from pipeline.codec import AvroCodec
from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.query import Query, Wanted
from pipeline.dead_letters.stats import stats
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.values import Values
from pipeline.filters import compile_filter

ANSWER_S = 1.0
LETTERS, QUICK_LETTERS = 1_000_000, 100_000
NEWEST = "list, newest 50"
OPEN = Wanted(states=("open",))
NOW = START_MS + 86_400_000
QUESTIONS: dict[str, Wanted] = {
    NEWEST: OPEN,
    "one key": Wanted(keys=("run-77",)),
    "one event id": Wanted(event_ids=("e-1-777",)),
    "a tenant that has none": Wanted(tenants=("nobody",)),
    "text that is nowhere": Wanted(text="no such text"),
    "class and attempts": Wanted(where=compile_filter('error.class == "RateLimit" and attempt >= 3', NOW)),
    "like, nowhere": Wanted(where=compile_filter('error.message like "*nope*"', NOW)),
    "or, nowhere": Wanted(where=compile_filter('tenant == "nobody" or attempt > 9', NOW)),
}


def asked(letters: int) -> dict[str, Any]:
    """Milliseconds for each question, as a command asks it: the index is opened, brought up to date (nothing is new), asked."""
    codec = registered()
    make = maker(codec)
    began = time.thread_time()
    for offset in range(20_000):
        make(0, offset)
    making_s = (time.thread_time() - began) / 20_000 * letters
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.sqlite"
        cluster = SyntheticCluster(make, [letters // 4] * 4)
        store = Store(path)
        began, cpu = time.perf_counter(), time.thread_time()
        read = Ingest(store, cluster, DLQ, RESULTS, Values(codec)).run().read  # type: ignore[arg-type]
        wall_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu - making_s
        store.close()
        questions = {name: _timed(path, cluster, codec, _page_of(wanted)) for name, wanted in QUESTIONS.items()}
        counted = _timed(path, cluster, codec, lambda store: stats(store.db, Query(store.db, DLQ, OPEN), NOW).total)
    return {"letters": read, "build_s": wall_s, "build_cpu_s": cpu_s, "questions": questions, "stats": counted}


def _page_of(wanted: Wanted) -> Callable[[Store], int]:
    return lambda store: len(Query(store.db, DLQ, wanted).page(50).letters)


def _timed(path: Path, cluster: SyntheticCluster, codec: AvroCodec, ask: Callable[[Store], int]) -> tuple[float, int]:
    """(milliseconds, how many were found)."""
    began = time.perf_counter()
    store = Store(path)
    try:
        new = Ingest(store, cluster, DLQ, RESULTS, Values(codec)).run().read  # type: ignore[arg-type]
        found = ask(store)
    finally:
        store.close()
    if new:
        raise RuntimeError(f"{new} letters were read that the index had already")
    return (time.perf_counter() - began) * 1_000, found


def rows(lab: Lab) -> Iterator[Row]:
    """Of 1,000,000 in the index; searches by their slowest question."""
    found = lab.run("dead_letters:asked", letters=lab.sized(LETTERS, QUICK_LETTERS))
    questions = dict(found["questions"])
    if found["stats"][1] != found["letters"]:
        raise MeasureError(f"stats counted {found['stats'][1]:,} of {found['letters']:,} dead letters")
    listed, _ = questions.pop(NEWEST)
    slowest = max(questions, key=lambda name: questions[name][0])
    built = f"built in {found['build_s']:.0f} s, making them included"
    for name, what, took_ms, note in (
        ("dead-letters-list", "the newest 50 dead letters", listed, built),
        (
            "dead-letters-search",
            f"{len(questions)} searches, the slowest",
            questions[slowest][0],
            f"the slowest: {slowest}",
        ),
        ("dead-letters-stats", "all of them counted by error, type, tenant and age", found["stats"][0], ""),
    ):
        note = "; ".join(part for part in (note, "nothing of Kafka is in it") if part)
        yield Row(
            name, f"{what}, of {found['letters']:,} in the index", None, f"<= {ANSWER_S:g} s", took_ms <= ANSWER_S * 1_000,
            took_ms / 1_000, None, "s", None, note, {"letters": found["letters"]},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dead_letters")
    parser.add_argument("--letters", type=int, default=LETTERS)
    found = asked(parser.parse_args().letters)
    read = found["letters"]
    print(
        f"built: {read:,} letters; {read / found['build_s']:,.0f}/s with making them, {read / found['build_cpu_s']:,.0f}/s without (CPU)"
    )
    for name, (took_ms, many) in {**found["questions"], "stats": found["stats"]}.items():
        print(f"{name:<26}{took_ms:8.1f} ms, {many:,} found")


if __name__ == "__main__":
    main()
