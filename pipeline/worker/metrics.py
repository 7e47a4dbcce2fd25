"""Prometheus metrics and health of one worker process, read from the engines' plain counters when they are asked for.

Nothing is counted twice and the hot path pays nothing. Each process serves its own port, so several on one machine are
told apart by the scraper's `instance` label: no shared files, no merging.

| metric | type | labels | what |
|---|---|---|---|
| pipeline_records_processed_total | counter | group | records settled as done |
| pipeline_attempts_failed_total | counter | group, kind | executions that failed, by kind of failure |
| pipeline_handoffs_total | counter | group, lane, cause | records written to a lane, by cause: retry, wait (order), hop |
| pipeline_dead_letters_total | counter | group, error_class | records written to the dead letters |
| pipeline_warnings_total | counter | group | records done with a warning |
| pipeline_attempts_timed_out_total | counter | group | attempts ended by their deadline |
| pipeline_fetch_faults_total | counter | group | fetch errors of a partition |
| pipeline_running | gauge | group | records being handled now |
| pipeline_buffered | gauge | group | records fetched and not started |
| pipeline_parked_records | gauge | group | records waiting in retry tiers, of the partitions owned here |
| pipeline_parked_keys | gauge | group | keys that wait |
| pipeline_partitions | gauge | group | partitions owned here |
| pipeline_commit_failures_total | counter | group | partitions whose commit was refused |
| pipeline_amplification_alarms_total | counter | group | times that very many records waited behind one key |
| pipeline_handoff_amplification | gauge | group | hand-offs of successors per retried record |
| pipeline_consuming | gauge | group | 1 while the group takes work, 0 while it does not |
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from pipeline.worker.worker import Running, Worker

_COUNTERS: tuple[tuple[str, str, Callable[[Running], float]], ...] = (
    ("pipeline_records_processed", "Records settled as done.", lambda r: r.engine.stats.processed),
    ("pipeline_warnings", "Records done with a warning.", lambda r: r.engine.stats.warnings),
    ("pipeline_attempts_timed_out", "Attempts ended by their deadline.", lambda r: r.engine.stats.timeouts),
    ("pipeline_fetch_faults", "Fetch errors of a partition.", lambda r: r.engine.stats.fetch_faults),
    (
        "pipeline_amplification_alarms",
        "Times that very many records waited behind one key.",
        lambda r: r.engine.stats.amplification_alarms,
    ),
    ("pipeline_commit_failures", "Partitions whose commit was refused.", lambda r: r.engine.commit_failures),
)
_GAUGES: tuple[tuple[str, str, Callable[[Running], float]], ...] = (
    ("pipeline_running", "Records being handled now.", lambda r: r.engine.executor.running()),
    ("pipeline_buffered", "Records fetched and not started.", lambda r: r.engine.buffered),
    ("pipeline_parked_records", "Records waiting in retry tiers.", lambda r: sum(map(len, _parking(r)))),
    ("pipeline_parked_keys", "Keys that wait.", lambda r: sum(len(p.keys) for p in _parking(r))),
    ("pipeline_partitions", "Partitions owned here.", lambda r: len(r.engine.partitions)),
    (
        "pipeline_handoff_amplification",
        "Hand-offs of successors per retried record.",
        lambda r: r.engine.stats.amplification,
    ),
)


def _parking(running: Running) -> list[Any]:
    return [unit.parking for unit in list(running.engine.partitions.values())]


class WorkerCollector(Collector):
    """Turns the counters of a worker's engines into metric families at scrape time."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        running = list(self._worker.running)
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["group"])
            for each in running:
                counter.add_metric([each.layout.group], read(each))
            yield counter
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["group"])
            for each in running:
                gauge.add_metric([each.layout.group], read(each))
            yield gauge
        yield from self._by_cause(running)

    def _by_cause(self, running: list[Running]) -> Iterator[Metric]:
        failed = CounterMetricFamily("pipeline_attempts_failed", "Executions that failed.", labels=["group", "kind"])
        hops = CounterMetricFamily("pipeline_handoffs", "Records written to a lane.", labels=["group", "lane", "cause"])
        dead = CounterMetricFamily(
            "pipeline_dead_letters", "Records written to the dead letters.", labels=["group", "error_class"]
        )
        consuming = GaugeMetricFamily("pipeline_consuming", "1 while the group takes work.", labels=["group"])
        health = self._worker.health()
        for each in running:
            group, stats = each.layout.group, each.engine.stats
            for kind, count in dict(stats.failures).items():
                failed.add_metric([group, kind], count)
            for (lane, cause), count in dict(stats.hops).items():
                hops.add_metric([group, lane, cause], count)
            for error_class, count in dict(stats.dead).items():
                dead.add_metric([group, error_class], count)
            consuming.add_metric([group], float(health[group]["consuming"]))
        yield from (failed, hops, dead, consuming)


class StatusServer:
    """`/metrics` and `/health` of one process (200 when every group consumes, else 503 with the reason)."""

    def __init__(self, worker: Worker, port: int, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(WorkerCollector(worker))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
                elif self.path == "/health":
                    health = worker.health()
                    fine = bool(health) and all(group["consuming"] for group in health.values())
                    self._answer(200 if fine else 503, "application/json", json.dumps(health).encode())
                else:
                    self._answer(404, "text/plain", b"try /metrics or /health\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Scrapes are not worth a log line."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
