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
| pipeline_unreadable_batches_total | counter | group | batches that no client can read, passed over with a pointer in the dead letters |
| pipeline_running | gauge | group | records being handled now |
| pipeline_buffered | gauge | group | records in memory that do not run |
| pipeline_suspects | gauge | group | records that run alone because their partition's owners died |
| pipeline_parked_records | gauge | group | records waiting in retry tiers, of the partitions owned here |
| pipeline_parked_keys | gauge | group | keys that wait |
| pipeline_held_keys | gauge | group | keys held behind a dead letter, of the partitions owned here |
| pipeline_partitions | gauge | group | partitions owned here |
| pipeline_commit_failures_total | counter | group | partitions whose commit was refused |
| pipeline_stalls_total | counter | group | handlers that did not end at their deadline and can't be stopped |
| pipeline_stalled | gauge | group | those that have not ended yet |
| pipeline_loop_blocks_total | counter | | times that the event loop did not turn for a second |
| pipeline_process_deaths_total | counter | group | child processes that ended while they ran a record |
| pipeline_jobs_stalled_total | counter | group | jobs whose worker or process ended while they ran; they run again, or are given up |
| pipeline_transactions_committed_total | counter | group | transactions of exactly_once that were committed |
| pipeline_transactions_aborted_total | counter | group | those that were given up, their records done again |
| pipeline_transaction_commit_seconds_total | counter | group | time from the last record to the commit's answer, summed up |
| pipeline_transactional_producers_rebuilt_total | counter | group | producers made anew after a doubt |
| pipeline_amplification_alarms_total | counter | group | times that very many records waited behind one key |
| pipeline_handoff_amplification | gauge | group | hand-offs of successors per retried record |
| pipeline_handler_duration_seconds | histogram | group | how long the handler took, of a sample (see `histograms`) |
| pipeline_latency_seconds | histogram | group | from publication to done, through retries, of a sample |
| pipeline_alerts_total | counter | group, result | alerts: delivered, failed, dropped, summarised |
| pipeline_consuming | gauge | group | 1 while the group takes work, 0 while it does not |
| pipeline_jobs | gauge | group, type, state | jobs of a queue, of the partitions owned here (this one and those below: `jobs.metrics`) |
| pipeline_jobs_oldest_due_seconds | gauge | group, type | for how long the oldest due job has not started |
| pipeline_job_schedules | gauge | group | schedules, of the partitions owned here |
| pipeline_jobs_ended_total | counter | group, type, outcome | jobs that had their ending, by their last state |
| pipeline_job_attempts_failed_total | counter | group, type, kind | executions that failed, by kind of failure |
| pipeline_job_stalls_total | counter | group, type | executions that ended with their worker |
| pipeline_job_duration_seconds | histogram | group, type | how long an execution took, of a sample |
| pipeline_job_latency_seconds | histogram | group, type | from when a job was due first until it completed, of a sample |
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.worker.jobs import metrics as job_metrics

if TYPE_CHECKING:
    from pipeline.worker.worker import Running, Worker

_COUNTERS: tuple[tuple[str, str, Callable[[Running], float]], ...] = (
    ("pipeline_records_processed", "Records settled as done.", lambda r: r.engine.stats.processed),
    ("pipeline_warnings", "Records done with a warning.", lambda r: r.engine.stats.warnings),
    ("pipeline_attempts_timed_out", "Attempts ended by their deadline.", lambda r: r.engine.stats.timeouts),
    ("pipeline_fetch_faults", "Fetch errors of a partition.", lambda r: r.engine.stats.fetch_faults),
    ("pipeline_unreadable_batches", "Batches passed over with a pointer.", lambda r: r.engine.stats.unreadable_batches),
    (
        "pipeline_amplification_alarms",
        "Times that very many records waited behind one key.",
        lambda r: r.engine.stats.amplification_alarms,
    ),
    ("pipeline_stalls", "Handlers that did not end at their deadline.", lambda r: r.engine.stalls.count),
    (
        "pipeline_process_deaths",
        "Child processes that ended while they ran a record.",
        lambda r: r.engine.stats.process_deaths,
    ),
    (
        "pipeline_jobs_stalled",
        "Jobs whose worker or process ended while they ran.",
        lambda r: r.engine.stats.stalled_jobs,
    ),
    ("pipeline_commit_failures", "Partitions whose commit was refused.", lambda r: r.engine.commit_failures),
)
_GAUGES: tuple[tuple[str, str, Callable[[Running], float]], ...] = (
    ("pipeline_stalled", "Handlers past their deadline that still run.", lambda r: len(r.engine.stalls.current)),
    ("pipeline_running", "Records being handled now.", lambda r: r.engine.executor.running()),
    ("pipeline_buffered", "Records in memory that do not run.", lambda r: r.engine.buffered),
    (
        "pipeline_suspects",
        "Records that run alone because their partition's owners died.",
        lambda r: sum(r.engine.quarantine.by_partition().values()),
    ),
    ("pipeline_parked_records", "Records waiting in retry tiers.", lambda r: sum(map(len, _parking(r)))),
    (
        "pipeline_held_keys",
        "Keys held behind a dead letter.",
        lambda r: sum(map(_held, list(r.engine.partitions.values()))),
    ),
    ("pipeline_parked_keys", "Keys that wait.", lambda r: sum(len(p.keys) for p in _parking(r))),
    ("pipeline_partitions", "Partitions owned here.", lambda r: len(r.engine.partitions)),
    (
        "pipeline_handoff_amplification",
        "Hand-offs of successors per retried record.",
        lambda r: r.engine.stats.amplification,
    ),
)


def _held(unit: Any) -> int:
    return len(unit.holds.heads)


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
        watch = self._worker.loop_watch
        text = "Times that the event loop did not turn for a second."
        yield CounterMetricFamily("pipeline_loop_blocks", text, value=watch.blocked if watch is not None else 0)
        yield from self._by_cause(running)
        yield from job_metrics.collect(running)
        yield from self._timed(running)
        yield from self._transactions(running)
        alerts = CounterMetricFamily("pipeline_alerts", "Alerts of dead letters.", labels=["group", "result"])
        if self._worker.alerts is not None:
            for labels, count in dict(self._worker.alerts.results).items():
                alerts.add_metric(labels, count)
        yield alerts

    @staticmethod
    def _transactions(running: list[Running]) -> Iterator[Metric]:
        """Of groups that have none there is no line."""
        counts = [
            (each.layout.group, each.engine.transactions.counts, each.engine.transactions.rebuilt)
            for each in running
            if each.engine.transactions is not None
        ]
        made = CounterMetricFamily("pipeline_transactions_committed", "Transactions committed.", labels=["group"])
        given_up = CounterMetricFamily("pipeline_transactions_aborted", "Transactions given up.", labels=["group"])
        took = CounterMetricFamily(
            "pipeline_transaction_commit_seconds", "Time to commit transactions, summed up.", labels=["group"]
        )
        anew = CounterMetricFamily(
            "pipeline_transactional_producers_rebuilt", "Producers made anew after a doubt.", labels=["group"]
        )
        for group, count, rebuilt in counts:
            made.add_metric([group], count.committed)
            given_up.add_metric([group], count.aborted)
            took.add_metric([group], count.commit_s)
            anew.add_metric([group], max(0, rebuilt))
        yield from (made, given_up, took, anew)

    @staticmethod
    def _timed(running: list[Running]) -> Iterator[Metric]:
        took = HistogramMetricFamily(
            "pipeline_handler_duration_seconds", "How long the handler took, of a sample.", labels=["group"]
        )
        latency = HistogramMetricFamily(
            "pipeline_latency_seconds", "From publication to done, of a sample.", labels=["group"]
        )
        for each in running:
            stats = each.engine.stats
            took.add_metric([each.layout.group], stats.durations.cumulative(), stats.durations.sum_s)
            latency.add_metric([each.layout.group], stats.latencies.cumulative(), stats.latencies.sum_s)
        yield from (took, latency)

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
