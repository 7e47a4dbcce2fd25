"""Runs the demo: Kafka, topics, workers, load, the kill, the wait for the last record, the account. Ends everything it started."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.app import Pipeline
from pipeline.demo import accounting
from pipeline.demo.accounting import Kill, account_of_group, account_of_source, per_second
from pipeline.demo.feed import Feed, Load, identities
from pipeline.demo.groups import GROUPS, TIERS, Place, build, lanes_of, ledger_topic
from pipeline.demo.processes import WorkerProcess, Workers
from pipeline.demo.readback import Facts, Tail, TopicMap, progress_of, read_back, unsettled
from pipeline.demo.report import KillReport, Rates, Report
from pipeline.demo.screen import GroupView, Screen, View
from pipeline.emit.policy import BufferPolicy
from pipeline.model.cluster import ClusterAdmin, TopicSpec
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.partitioner import partition_of
from pipeline.model.topics import AUDIT_TOPIC, CLOCK_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC, SCHEMAS_TOPIC, TASKS_TOPIC
from pipeline.model.views import Ledger
from pipeline.topology import Defaults, apply

PARTITIONS = 8
WORKERS_PER_GROUP = 2
JOIN_S = 60.0
TICK_S = 0.05
PUBLISH_S = 6.0
RATE_MIN, RATE_MAX = 100.0, 4_000.0
HOLD_SHARE = 0.6
"""So much is published before the kill, whatever happens: the kill comes in the middle."""
KILL_SHARE = 1 / 3
STALLED_S = 15.0
SNAPSHOT_AFTER_S, SNAPSHOT_BEFORE_S = 0.3, 2.0
"""When the killed worker's commits are read: later than its last bytes, before anybody can have taken over."""
SETTLE_EVERY_S = 0.5
SEVERAL_BROKERS_MS = 500


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`broker`: an address instead of the embedded Kafka. `worker_module`: what is run as a worker process (tests put in a bad one).

    `deadline_s`: how long all records may take, from the first one published.
    """

    broker: str | None = None
    prefix: str = ""
    worker_module: str = "pipeline.demo.worker"
    deadline_s: float | None = None
    keep: bool = False


class Demo:
    """One run on a Kafka that answers. `screen` hears what happens."""

    def __init__(self, place: Place, load: Load, screen: Screen, options: DemoOptions) -> None:
        self._load = load
        self._screen = screen
        self._options = options
        self._app: Pipeline = build(place)
        self._topics = TopicMap.of(self._app, PARTITIONS)
        self._folder = Path(tempfile.mkdtemp(prefix="pipeline-demo-"))
        self._workers = Workers(options.worker_module, place, self._folder)
        self._kill: Kill | None = None
        self._killed: WorkerProcess | None = None
        self._began = time.monotonic()
        self._killed_at_s = 0.0

    @property
    def _total(self) -> int:
        return len(self._load.records)

    def run(self, started: float) -> Report:
        """`started`: monotonic seconds when the command began. Nothing it started is left running, whatever happens."""
        keep_logs = False
        try:
            self._make_topics()
            self._start_workers()
            timed_out = not self._work()
            self._screen.say("stopping the workers, then reading every topic back")
            for late in self._workers.stop():
                self._screen.say(f"{late.name} did not stop in time and was killed")
            facts = read_back(self._app, self._topics, deadline_s=120)
            report = self._report(facts, timed_out, time.monotonic() - started)
            keep_logs = not report.ok
            return report
        finally:
            self._workers.stop(grace_s=3.0)
            if keep_logs:
                self._screen.say(f"the workers' logs are in {self._folder}")
            else:
                shutil.rmtree(self._folder, ignore_errors=True)

    # -- before

    def _make_topics(self) -> None:
        self._screen.say("making the topics: one source, and for each group its tiers, dead letters and ledger")
        app, admin = self._app, self._app.cluster.admin()
        apply(admin, app.subscriptions, Defaults(partitions=PARTITIONS), app.settings.prefix)
        # Broker time in the ledger as in the dead letters: that is how endings in both are put into one order.
        broker_time = {"message.timestamp.type": "LogAppendTime"}
        ledgers = [app.topic_name(ledger_topic(group)) for group in GROUPS]
        admin.create_topics([TopicSpec(topic, PARTITIONS, configs=broker_time) for topic in ledgers])
        app.codec.prepare(self._topics.source)
        for topic in ledgers:
            app.codec.prepare(topic, (Ledger.record_name,))

    def _start_workers(self) -> None:
        for group in GROUPS:
            for index in range(WORKERS_PER_GROUP):
                self._workers.start(group, index)
        self._screen.say(f"starting {WORKERS_PER_GROUP} worker processes for each of {' and '.join(GROUPS)}")
        deadline = time.monotonic() + JOIN_S
        waiting = set(GROUPS)
        while waiting:
            self._workers.check()
            waiting = {group for group in waiting if not self._all_joined(group)}
            if time.monotonic() > deadline:
                raise ClusterUnavailable(
                    f"the workers of {', '.join(sorted(waiting))} did not get their partitions within {JOIN_S:g} s: "
                    "is the machine very busy, or may they not join the group?"
                )
            time.sleep(TICK_S)

    def _all_joined(self, group: str) -> bool:
        owned = self._owned(group)
        return len(owned) == WORKERS_PER_GROUP and sum(map(len, owned.values())) == PARTITIONS

    def _owned(self, group: str) -> dict[str, frozenset[int]]:
        """Worker name -> its source partitions, as the coordinator knows them."""
        state = self._app.cluster.admin().describe_group(self._app.group_name(group))
        owned = {m.client_id: frozenset(p.partition for p in m.partitions) for m in state.members}
        return {name: partitions for name, partitions in owned.items() if partitions}

    # -- the work

    def _work(self) -> bool:
        """True when everything is accounted for; False past the deadline."""
        rate = min(RATE_MAX, max(RATE_MIN, self._total / PUBLISH_S))
        deadline_s = self._options.deadline_s or 75 + self._total / 400
        publisher = self._app.publisher(BufferPolicy(block_timeout="20s"))
        tail = Tail(self._app, self._topics)
        feed = Feed(publisher, self._topics.source, self._load, rate, max(1, int(self._total * HOLD_SHARE)))
        self._screen.say(f"publishing {self._total} records of {self._load.runs} runs")
        self._began = time.monotonic()
        try:
            feed.start()
            return self._until_accounted(tail, feed, deadline_s)
        finally:
            feed.stop()
            publisher.close(5.0)
            tail.close()

    def _until_accounted(self, tail: Tail, feed: Feed, deadline_s: float) -> bool:
        look_at = 0.0
        while (since := time.monotonic() - self._began) < deadline_s:
            tail.poll(TICK_S)
            feed.check()
            self._workers.check()
            self._screen.show(self._view(tail.facts, since))
            if self._kill is None:
                if self._is_middle(tail.facts, feed):
                    self._kill_one(tail.facts, feed)
                    feed.go_on()
            elif feed.done and tail.facts.endings() >= self._total * len(GROUPS) and since >= look_at:
                if not any(unsettled(self._app, self._topics, group) for group in GROUPS):
                    return True
                look_at = since + SETTLE_EVERY_S
        return False

    def _is_middle(self, facts: Facts, feed: Feed) -> bool:
        """A third is processed and something is under way; or the rest is held back and what is published has long ended."""
        since = time.monotonic() - self._began
        if facts.endings() < self._total * len(GROUPS) * KILL_SHARE:
            return feed.holding and since > STALLED_S
        under_way = len(facts.source) * len(GROUPS) > facts.endings()
        return under_way or feed.holding

    def _kill_one(self, facts: Facts, feed: Feed) -> None:
        """SIGKILL the worker with the most to do: its loss hurts most. What its group had committed is read right after."""
        ahead = [partition_of(record.key, PARTITIONS) for record in self._load.records[feed.sent :]]
        best: tuple[int, int, WorkerProcess, frozenset[int]] | None = None
        for group in GROUPS:
            unfinished = facts.unfinished(group)
            for name, partitions in self._owned(group).items():
                worker = next(w for w in self._workers.all if w.name == name)
                load = sum(unfinished.get(p, 0) for p in partitions), sum(p in partitions for p in ahead)
                if best is None or load > best[:2]:
                    best = (*load, worker, partitions)
        assert best is not None, "the groups were complete, so somebody owns the partitions"
        worker, partitions = best[2], best[3]
        self._workers.kill(worker)
        at_ms, at_s = time.time_ns() // 1_000_000, time.monotonic()
        self._killed, self._killed_at_s = worker, at_s - self._began
        self._screen.say(
            f"SIGKILL to {worker.name} (pid {worker.process.pid}), the owner of {len(partitions)} partitions"
        )
        time.sleep(SNAPSHOT_AFTER_S)
        durable = progress_of(self._app, worker.group, self._topics.lanes(worker.group))
        in_time = time.monotonic() - at_s < SNAPSHOT_BEFORE_S
        self._kill = Kill(
            worker.group, worker.name, partitions, at_ms, self._topics.source, durable if in_time else None
        )

    def _view(self, facts: Facts, since_s: float) -> View:
        groups = []
        for group in GROUPS:
            dead = facts.dead[group]
            tiers = [(tier, facts.copies[group, tier]) for tier in TIERS[group]]
            workers = [(w.name, w.alive) for w in self._workers.all if w.group == group]
            groups.append(GroupView(group, len(facts.ended[group]) - dead, dead, tiers, workers))
        return View(self._total, len(facts.source), groups, since_s)

    # -- after

    def _report(self, facts: Facts, timed_out: bool, seconds: float) -> Report:
        tolerance_ms = 0 if self._options.broker is None else SEVERAL_BROKERS_MS
        source = account_of_source(identities(self._load), facts.source)
        groups = tuple(account_of_group(facts.source, facts.groups[g], self._kill, tolerance_ms) for g in GROUPS)
        published = per_second(record.at_ms for record in facts.source)
        processed = per_second(e.at_ms for group in GROUPS for e in facts.groups[group].endings)
        return Report(
            runs=self._load.runs,
            skipped=len(self._load.skipped),
            source=source,
            groups=groups,
            kill=self._kill_report(facts),
            rates=Rates(*published, *processed),
            seconds=seconds,
            timed_out=timed_out,
        )

    def _kill_report(self, facts: Facts) -> KillReport | None:
        kill, worker = self._kill, self._killed
        if kill is None or worker is None:
            return None
        group = facts.groups[kill.group]
        took = accounting.takeover_ms(facts.source, group, kill)
        return KillReport(
            worker=kill.worker,
            pid=worker.process.pid,
            at_s=self._killed_at_s,
            partitions=len(kill.partitions),
            in_flight=accounting.in_flight(facts.source, group, kill),
            takeover_s=took if took is None or took < 0 else took / 1000,
        )


def remove_topics(app: Pipeline, admin: ClusterAdmin) -> None:
    """What the demo made on a cluster that is not its own. Only with a prefix: that is what tells its topics from others'."""
    prefix = app.settings.prefix
    assert prefix, "without a prefix the topics could be somebody else's"
    system = (CONTROL_TOPIC, SCHEMAS_TOPIC, AUDIT_TOPIC, RESULTS_TOPIC, TASKS_TOPIC, CLOCK_TOPIC)
    own = {app.topic_name(name) for name in (app.settings.events_topic, *system)}
    own |= {app.topic_name(ledger_topic(group)) for group in GROUPS}
    for group in GROUPS:
        lanes = lanes_of(app, group)
        own |= {*lanes.lanes, lanes.dead_letters}
    admin.delete_topics(own.intersection(admin.topic_names()))


@contextlib.contextmanager
def open_place(options: DemoOptions, screen: Screen, mirror: str | None) -> Iterator[Place]:
    """An embedded Kafka that ends with the block, or the given one, from which the demo's topics are removed again."""
    if options.broker is None:
        from pipeline.kafka.embedded import EmbeddedBroker

        broker = EmbeddedBroker(mirror=mirror)
        screen.say("starting Apache Kafka on this machine")
        try:
            broker.start(_download(screen))
            yield Place(broker.bootstrap)
        finally:
            broker.stop()
        return
    place = Place(options.broker, options.prefix)
    app = build(place)
    screen.say(f"using the Kafka at {options.broker}; topics and groups begin with {options.prefix}")
    app.cluster.admin().topic_names()  # away? then say so before anything is started
    try:
        yield place
    finally:
        if not options.keep:
            with contextlib.suppress(ClusterUnavailable):
                remove_topics(app, app.cluster.admin())


def _download(screen: Screen) -> Callable[[str, int, int], None]:
    tenths: list[int] = []

    def progress(_what: str, done_bytes: int, total_bytes: int) -> None:
        tenth = 10 * done_bytes // max(1, total_bytes)
        if not tenths or tenth > tenths[-1]:
            tenths.append(tenth)
            screen.say(f"  fetching Kafka, only this once: {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB")

    return progress
