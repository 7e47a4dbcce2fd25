"""All subscriptions of an application in one process: checks the topology, wires engines to the cluster, starts and stops them."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.model.cluster import Cluster, ClusterAdmin, ConsumerPolicy, RecordProducer
from pipeline.model.control import Switches
from pipeline.model.errors import ClusterUnavailable, ConfigurationError, SchemaUnavailable, TopologyError
from pipeline.model.outcome import Emit
from pipeline.model.policies import HandlerKind, Subscription
from pipeline.model.topics import CLOCK_TOPIC, CONTROL_TOPIC
from pipeline.topology import Layout, layout
from pipeline.worker.alerting import AlertPolicy, Alerts
from pipeline.worker.batches import BatchRunners
from pipeline.worker.cluster_time import ClusterTime
from pipeline.worker.control import ControlFollower
from pipeline.worker.declaring import is_async
from pipeline.worker.diagnosing import Diagnosis
from pipeline.worker.drivers import Driver, LoopDriver, ThreadDriver
from pipeline.worker.encoding import OutputEncoder, codec_of, schema_of
from pipeline.worker.engine import Engine
from pipeline.worker.execution import Execution, batch_decoder, decoder
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.health import health_of
from pipeline.worker.isolation import ProcessRunners
from pipeline.worker.jobs.boards import Opening
from pipeline.worker.jobs.wiring import executor_of
from pipeline.worker.lanes import fetch_policy, lane_specs
from pipeline.worker.logs import logger
from pipeline.worker.parts import Clock, EngineParts, Executor, wall_clock_ms
from pipeline.worker.runners import AsyncRunners
from pipeline.worker.stalls import LoopWatch
from pipeline.worker.targets import needed, target_of
from pipeline.worker.threads import ThreadRunners
from pipeline.worker.transaction_parts import producer_for
from pipeline.worker.webhook import Webhook

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.model.job_types import JobQueue

START_TIMEOUT_S = 60.0
START_RETRY_S = 1.0
ALERTS_STOP_S = 5.0
"""How long a stop waits for alerts that are still to be sent."""
BROKER_SESSION_TIMEOUT = "group.consumer.session.timeout.ms"


@dataclass(slots=True)
class Running:
    """One subscription at work."""

    subscription: Subscription
    layout: Layout
    engine: Engine
    fetcher: Fetcher
    driver: Driver


class Worker:
    """Made by `Pipeline.start`. All methods belong to one event loop; `health` may be called from any thread."""

    def __init__(self, app: Pipeline, groups: Sequence[str] = (), index: int = 0, target: str | None = None) -> None:
        unknown = set(groups) - {s.group for s in app.subscriptions}
        if unknown:
            raise ConfigurationError(
                f"group={sorted(unknown)[0]!r} is not declared by this application; declared: {_groups(app)}"
            )
        self._app = app
        self._subscriptions = [s for s in app.subscriptions if not groups or s.group in groups]
        if not self._subscriptions:
            raise ConfigurationError("the application declares no subscription: use @app.subscribe(topic, group=...)")
        self._index = index
        self._target = target or target_of(app)
        self._log = logger(app=app.name, pid=os.getpid())
        self._switches = Switches()
        self._producer: RecordProducer | None = None
        self._control: ControlFollower | None = None
        self._encoder = OutputEncoder(app)
        self.running: list[Running] = []
        self._time = ClusterTime(app.topic_name(CLOCK_TOPIC), self._log)
        self.alerts: Alerts | None = None
        self.loop_watch: LoopWatch | None = None
        self.broken: asyncio.Future[BaseException] | None = None

    @property
    def in_memory(self) -> bool:
        return self._app.settings.broker.startswith("memory://")

    @property
    def drain_ms(self) -> int:
        """The longest that one of its subscriptions may take to let go."""
        flows = (running.engine.execution.subscription.flow for running in self.running)
        return max((flow.drain_timeout_ms for flow in flows), default=0)

    # -- start

    async def start(self) -> None:
        """Check the topology and join the groups. Waits for a broker that is away, at most START_TIMEOUT_S.

        Raises TopologyError (records would be lost), ClusterUnavailable, NotAuthorized.
        """
        loop = asyncio.get_running_loop()
        self.broken = loop.create_future()
        deadline = loop.time() + START_TIMEOUT_S
        while True:
            try:
                await self._off_loop(self._prepare)
                break
            except (ClusterUnavailable, SchemaUnavailable) as error:
                if loop.time() > deadline:
                    raise
                self._log.warning("waiting for the cluster", broker=self._app.settings.broker, error=str(error))
                await asyncio.sleep(START_RETRY_S)
        cluster = self._app.cluster
        self._producer = cluster.producer(self._app.name)
        self.alerts = self._start_alerts(cluster, loop)
        for subscription in self._subscriptions:
            self.running.append(self._wire(subscription, cluster, loop))
        await self._warm_children()
        self._follow_control(cluster, loop)
        if not self.in_memory:
            self._time.start(cluster)
            self.loop_watch = LoopWatch(loop, self._log)
            self.loop_watch.start()
        for running in self.running:
            running.engine.start()
            running.driver.start()

    async def _warm_children(self) -> None:
        """Raises ConfigurationError when a child process can't load the application, PipelineError when none is ready: before anything is
        consumed."""
        try:
            for running in self.running:
                if isinstance(running.engine.executor, ProcessRunners):
                    await running.engine.executor.ready()
        except BaseException:
            for running in self.running:
                running.engine.executor.abandon()
            self.running.clear()
            await self.stop()
            raise

    async def _off_loop(self, work: Callable[[], object]) -> None:
        """Blocking requests run in a thread; the memory cluster answers at once and belongs to this one."""
        if self.in_memory:
            work()
        else:
            await asyncio.get_running_loop().run_in_executor(None, work)

    def _prepare(self) -> None:
        from pipeline.topology import check, existing_topics, together

        admin = self._app.cluster.admin()
        prefix = self._app.settings.prefix
        existing = existing_topics(admin, self._subscriptions, prefix)
        findings = check(self._subscriptions, existing, prefix=prefix)
        if errors := [finding for finding in findings if finding.level == "error"]:
            raise TopologyError(together(errors))
        for finding in findings:
            self._log.warning("topology", finding=finding.sentence)
        self._warn_of_slow_takeover(admin)
        self._time.prepare(self._app.cluster, existing)
        if any(s.value == "avro" for s in self._subscriptions):
            for topic in {s.topic for s in self._subscriptions if s.value == "avro"}:
                self._app.codec.prepare(self._app.topic_name(topic))
        for subscription in self._subscriptions:
            topics = layout(subscription, prefix).topics
            if topics.state is not None:
                from pipeline.codec.jobs import prepare_queue

                prepare_queue(self._app.codec, topics.source, topics.state)

    def _warn_of_slow_takeover(self, admin: ClusterAdmin) -> None:
        """With KIP-848 the broker sets the session timeout, 45 s by default: that long a dead worker's keys stand still."""
        if self._app.settings.group_protocol != "consumer":
            return
        timeout = admin.broker_setting(BROKER_SESSION_TIMEOUT)
        if timeout is None or int(timeout) > self._app.settings.session_timeout_s * 1000:
            self._log.warning(
                "a killed worker's partitions stand still for as long as the broker's session timeout: lower it there",
                setting=BROKER_SESSION_TIMEOUT,
                value_ms=timeout or "not visible; 45000 by default",
            )

    def _follow_control(self, cluster: Cluster, loop: asyncio.AbstractEventLoop) -> None:
        topic = self._app.topic_name(CONTROL_TOPIC)
        deliver: Callable[[Callable[[], None]], Any] = loop.call_soon_threadsafe
        self._control = ControlFollower(
            cluster.reader(self._app.name), topic, self._switches, deliver, self._switched, self._log
        )
        if self.in_memory:
            self._control.attach()
            self._poll_control(loop)
        else:
            self._control.start()

    def _poll_control(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._control is not None:
            self._control.step(0)
            loop.call_later(0.25, self._poll_control, loop)

    def _switched(self) -> None:
        for running in self.running:
            if self._control is not None and self._control.was_resumed(running.layout.group):
                running.engine.resume()
            else:
                running.engine.follow_switches()

    # -- wiring

    def _wire(self, subscription: Subscription, cluster: Cluster, loop: asyncio.AbstractEventLoop) -> Running:
        app, settings = self._app, self._app.settings
        # A member that drains does not poll: both sides of the worker must give up at the same, possible, time.
        drain_ms = min(subscription.flow.drain_timeout_ms, round(settings.max_poll_interval_s * 800))
        subscription = replace(subscription, flow=replace(subscription.flow, drain_timeout_ms=drain_ms))
        place = layout(subscription, settings.prefix)
        source = place.topics.source
        log = self._log.bind(group=place.group, topic=source)
        codec = codec_of(app, subscription)
        execution = Execution(
            subscription,
            source,
            decoder(subscription, source, codec),
            log,
            batch_decoder(subscription, source, codec),
            cluster.address,
        )
        opening = Opening()
        clock = self._time.keep(Clock(getattr(cluster, "clock", wall_clock_ms)))
        assert self._producer is not None
        assert self.alerts is not None
        diagnosis = Diagnosis(subscription, source, codec)
        parts = EngineParts(
            topics=place.topics,
            group=place.group,
            producer=self._producer,
            encode=self._encoder.encode,
            prepare=self._prepare_output,
            schema_of=schema_of(subscription, source, codec),
            clock=clock,
            rng=random.Random(f"{app.name}/{place.group}/{self._index}") if self.in_memory else random.Random(),
            log=log,
            fetch_schema=lambda schema_id: app.codec.fetch(source, schema_id),
            switches=self._switches,
            broken=self._broke,
            transactional=producer_for(subscription, place.group, cluster, app.name, self._instance_id()),
            diagnosis=diagnosis,
            restored=opening.restored,
            alert=self.alerts.of(place.group, place.topics.dead_letters, diagnosis.alert),
        )
        engine = Engine(execution, parts, loop)
        admin = cluster.admin()
        fetcher = Fetcher(
            cluster.consumer(self._membership(place.group, drain_ms)),
            fetch_policy(place, subscription),
            lambda timeout_s: lane_specs(place, subscription, admin.topic_names(timeout_s)),
            engine.post,
            engine.backlog,
            loop.time if self.in_memory else time.monotonic,
            _no_wait if self.in_memory else time.sleep,
        )
        executor: Executor
        if subscription.jobs is not None:
            executor = executor_of(app, subscription.jobs, place, engine, opening, loop, self._job_target, self.alerts)
        else:
            executor = self._executor(engine, subscription, place.group, loop)
        engine.connect(fetcher, executor)
        engine.quarantine.target = None if self.in_memory else self._target
        return Running(subscription, place, engine, fetcher, self._driver(fetcher, engine, place.group, loop))

    def _driver(self, fetcher: Fetcher, engine: Engine, group: str, loop: asyncio.AbstractEventLoop) -> Driver:
        if self.in_memory:
            return LoopDriver(fetcher, loop, engine.fail)
        return ThreadDriver(fetcher, group, engine.failed_elsewhere)

    def _job_target(self, queue: JobQueue) -> str | None:
        """How processes of the queue's jobs find the application; None where they run in threads."""
        if self.in_memory:
            self._log.info("on a cluster in memory executor='process' runs handlers in threads", queue=queue.name)
            return None
        return needed(self._target, self._app.name)

    def _executor(
        self, engine: Engine, subscription: Subscription, group: str, loop: asyncio.AbstractEventLoop
    ) -> Executor:
        handler: Any = subscription.handler
        if subscription.kind is HandlerKind.BATCH:
            return BatchRunners(engine, handler, is_async(handler), loop)
        if subscription.kind is HandlerKind.ASYNC:
            return AsyncRunners(engine, handler, subscription.flow.concurrency, loop)
        if subscription.executor == "process" and not self.in_memory:
            return ProcessRunners(engine, needed(self._target, self._app.name), subscription.flow.concurrency)
        if subscription.executor == "process":
            self._log.info("on a cluster in memory executor='process' runs handlers in threads", group=group)
        return ThreadRunners(engine, handler, subscription.flow.concurrency, group)

    def _instance_id(self) -> str | None:
        settings = self._app.settings
        return f"{settings.instance_id}-{self._index}" if settings.instance_id else None

    def _membership(self, group: str, drain_ms: int) -> ConsumerPolicy:
        settings = self._app.settings
        return ConsumerPolicy(
            group=group,
            client_id=self._app.name,
            protocol=settings.group_protocol,
            session_timeout_ms=round(settings.session_timeout_s * 1000),
            max_poll_interval_ms=round(settings.max_poll_interval_s * 1000),
            instance_id=self._instance_id(),
            drain_timeout_ms=drain_ms,
        )

    async def _prepare_output(self, item: Emit) -> None:
        await self._off_loop(partial(self._encoder.prepare, item))

    def _start_alerts(self, cluster: Cluster, loop: asyncio.AbstractEventLoop) -> Alerts:
        app, settings = self._app, self._app.settings
        url, secret = settings.alert_webhook.get_secret_value(), settings.alert_secret.get_secret_value()
        hooks = {
            app.group_name(s.group): (*filter(None, (s.on_dead_letter,)), *app.alert_hooks) for s in self._subscriptions
        }
        clock, policy = getattr(cluster, "clock", wall_clock_ms), AlertPolicy(threads=not self.in_memory)
        alerts = Alerts(hooks, Webhook(url, secret) if url else None, clock, self._log, policy)
        alerts.start(loop)
        return alerts

    def _broke(self, error: BaseException) -> None:
        if self.broken is not None and not self.broken.done():
            self.broken.set_result(error)

    # -- stop

    async def stop(self) -> None:
        """Drain every subscription, commit, leave the groups."""
        if self.loop_watch is not None:
            self.loop_watch.stop()
        self._time.stop()
        if self._control is not None:
            control, self._control = self._control, None
            control.stop()
        await asyncio.gather(*(self._stop_one(running) for running in self.running))
        self.running.clear()
        if self.alerts is not None:
            await self.alerts.stop(ALERTS_STOP_S)
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await self._off_loop(lambda: producer.close(5.0))

    async def _stop_one(self, running: Running) -> None:
        if running.engine.broken is None:
            await running.engine.drain_all()
        running.driver.request_stop()
        await running.driver.join(30.0)
        await running.engine.stop()
        if (transactional := running.engine.parts.transactional) is not None:
            await self._off_loop(partial(transactional.close, 5.0))

    def abandon(self) -> None:
        """For simulations: as if the process had died here. Nothing is drained, committed or closed."""
        self._time.stop()
        self._control = None
        if self.alerts is not None:
            self.alerts.abandon()
        for running in self.running:
            running.driver.abandon()
            running.engine.abandon()
        self.running.clear()

    # -- looking in

    def health(self) -> dict[str, Any]:
        """Per group: is it consuming, and if not, why not."""
        return {running.layout.group: health_of(running) for running in self.running}


def _no_wait(_seconds: float) -> None:
    """On the memory cluster, whose answers do not change by waiting."""


def _groups(app: Pipeline) -> str:
    return ", ".join(s.group for s in app.subscriptions) or "none"
