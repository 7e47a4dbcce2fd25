"""Prometheus metrics of the queues that a worker process serves: part of the catalogue in `worker.metrics`.

Labels: `group` (the queue's), `type`. What stands where is of the partitions owned here; sum over processes for a queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pipeline.core.jobs.retrying import STALLED
from pipeline.worker.jobs.hosting import JobExecutor
from pipeline.worker.jobs.tally import Census, census

if TYPE_CHECKING:
    from pipeline.worker.worker import Running


def collect(running: list[Running]) -> Iterator[Metric]:
    """Of groups that are no queues there is no line."""
    queues = [(each.layout.group, each.engine.executor, each.engine.clock.read()) for each in running]
    found = [(group, executor, now_ms) for group, executor, now_ms in queues if isinstance(executor, JobExecutor)]
    counted = [(group, executor, census(executor.boards()), now_ms) for group, executor, now_ms in found]
    yield from _standing([(group, each, now_ms) for group, _, each, now_ms in counted])
    yield from _done([(group, executor) for group, executor, _ in found])


def _standing(counted: list[tuple[str, Census, int]]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("pipeline_jobs", "Jobs by state.", labels=["group", "type", "state"])
    oldest = GaugeMetricFamily(
        "pipeline_jobs_oldest_due_seconds", "For how long the oldest due job has not started.", labels=["group", "type"]
    )
    schedules = GaugeMetricFamily("pipeline_job_schedules", "Schedules.", labels=["group"])
    for group, each, now_ms in counted:
        for (name, state), count in each.states.items():
            jobs.add_metric([group, name, state], count)
        for name, since_ms in each.oldest_ms.items():
            oldest.add_metric([group, name], max(0, now_ms - since_ms) / 1000)
        schedules.add_metric([group], each.schedules)
    yield from (jobs, oldest, schedules)


def _done(found: list[tuple[str, JobExecutor]]) -> Iterator[Metric]:
    labels = ["group", "type"]
    ended = CounterMetricFamily("pipeline_jobs_ended", "Jobs that had their ending.", labels=[*labels, "outcome"])
    failed = CounterMetricFamily("pipeline_job_attempts_failed", "Attempts that failed.", labels=[*labels, "kind"])
    stalled = CounterMetricFamily("pipeline_job_stalls", "Executions that ended with their worker.", labels=labels)
    took = HistogramMetricFamily("pipeline_job_duration_seconds", "How long executions took.", labels=labels)
    latency = HistogramMetricFamily(
        "pipeline_job_latency_seconds", "From when a job was due until it completed.", labels=labels
    )
    for group, executor in found:
        tally = executor.tally
        for (name, outcome), count in tally.endings(executor.boards()).items():
            if outcome == STALLED:
                stalled.add_metric([group, name], count)
            else:
                ended.add_metric([group, name, outcome], count)
        for (name, kind), count in dict(tally.failures).items():
            failed.add_metric([group, name, kind], count)
        for name, histogram in dict(tally.durations).items():
            took.add_metric([group, name], histogram.cumulative(), histogram.sum_s)
        for name, histogram in dict(tally.latencies).items():
            latency.add_metric([group, name], histogram.cumulative(), histogram.sum_s)
    yield from (ended, failed, stalled, took, latency)
