"""`python -m bench.dead_letters [--letters N]`: how fast an index of dead letters is built, and how long its answers take.

The letters are made while they are read (nothing of Kafka is in the figures), as a worker writes them: 21 headers and an Avro
value that is decoded for its tenant. Making one costs about as much as indexing it, so it is taken off by CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.query import Query, Wanted
from pipeline.dead_letters.stats import stats
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.values import Values
from pipeline.filters import compile_filter
from tests.unit.dead_letters.synthetic import DLQ, RESULTS, START_MS, SyntheticCluster, maker, registered

OPEN = Wanted(states=("open",))
NOW = START_MS + 86_400_000
QUESTIONS: dict[str, Wanted] = {
    "list, newest 50": OPEN,
    "one key": Wanted(keys=("run-77",)),
    "one event id": Wanted(event_ids=("e-1-777",)),
    "a tenant that has none": Wanted(tenants=("nobody",)),
    "text that is nowhere": Wanted(text="no such text"),
    "class and attempts": Wanted(where=compile_filter('error.class == "RateLimit" and attempt >= 3', NOW)),
    "like, nowhere": Wanted(where=compile_filter('error.message like "*nope*"', NOW)),
    "or, nowhere": Wanted(where=compile_filter('tenant == "nobody" or attempt > 9', NOW)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dead_letters")
    parser.add_argument("--letters", type=int, default=1_000_000)
    letters = parser.parse_args().letters
    codec = registered()
    make = maker(codec)
    began = time.thread_time()
    for offset in range(20_000):
        make(0, offset)
    making_s = (time.thread_time() - began) / 20_000 * letters
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "index.sqlite")
        cluster = SyntheticCluster(make, [letters // 4] * 4)
        began, cpu = time.perf_counter(), time.thread_time()
        read = Ingest(store, cluster, DLQ, RESULTS, Values(codec)).run().read  # type: ignore[arg-type]
        wall_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu - making_s
        print(f"built: {read:,} letters; {read / wall_s:,.0f}/s with making them, {read / cpu_s:,.0f}/s without (CPU)")
        for name, wanted in QUESTIONS.items():
            began = time.perf_counter()
            found = len(Query(store.db, DLQ, wanted).page(50).letters)
            print(f"{name:<26}{(time.perf_counter() - began) * 1_000:8.1f} ms, {found} on the page")
        began = time.perf_counter()
        total = stats(store.db, Query(store.db, DLQ, OPEN), NOW).total
        print(f"{'stats':<26}{(time.perf_counter() - began) * 1_000:8.1f} ms, {total:,} counted")
        store.close()


if __name__ == "__main__":
    main()
