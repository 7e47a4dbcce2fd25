"""The boards of the partitions that a worker owns: an `Executor` that does not run what it takes, but admits it.

    inbox --take--> board.admit --effects--> StoreWriter --acknowledged--> engine.done (the inbox's offset is settled)
                        | take                    ^
                        '--> JobRuns --ended------'

Everything happens in the engine's thread, in `pump`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.jobs import commands
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Effect, Entry, Interrupt, Letter, Packing, Settle
from pipeline.core.jobs.job import Job
from pipeline.core.store_scan import StoreScan
from pipeline.core.unit import Unit
from pipeline.model.cluster import Headers
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.headers import STORE_EPOCH
from pipeline.model.job_states import GIVEN_UP
from pipeline.model.job_types import JobQueue
from pipeline.model.jobs import JobCommand, JobEnding, JobRequest, RetryJob
from pipeline.model.outcome import Failure
from pipeline.worker.engine import Engine
from pipeline.worker.execution import failure_of
from pipeline.worker.jobs.boards import Boards, Opening
from pipeline.worker.jobs.letters import letter_of
from pipeline.worker.jobs.running import JobRuns, Run
from pipeline.worker.jobs.writing import Place, StoreWriter, Written

ADMITTED_AT_ONCE = 1_000
UNWRITTEN_MAX = 20_000
"""Entries that wait for their acknowledgement, at which no more is taken from the inbox and nothing more is started."""
REPLAYED = -2
"""The numbers of replayed jobs go down from here: they stand where others have their offset in the inbox."""


@dataclass(frozen=True, slots=True)
class JobParts:
    """What the composition root hands in. `inbox` is a `codec.jobs.InboxCodec`, `packing` a `StoreCodec`.

    `fetch_schema` asks the registry for a schema of the store; it may wait, and raises SchemaUnavailable.
    """

    queue: JobQueue
    inbox: Any
    packing: Packing
    fetch_schema: Callable[[int], None]


class Host:
    """One partition's board at work. `open`: deliveries by the offset that the board knows them by."""

    __slots__ = ("board", "endings", "open", "replayed", "unit", "writer")

    def __init__(self, unit: Unit, board: Board, writer: StoreWriter) -> None:
        self.unit = unit
        self.board = board
        self.writer = writer
        self.open: dict[int, Delivery] = {}
        self.endings: list[tuple[Job, int, JobEnding]] = []
        self.replayed = REPLAYED


class JobExecutor:
    """See the module, and `parts.Executor`."""

    def __init__(self, engine: Engine, parts: JobParts, opening: Opening, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._parts = parts
        self._opening = opening
        self._loop = loop
        flow = engine.execution.subscription.flow
        self._concurrency = flow.concurrency
        self._sync_s = flow.commit_interval_ms / 1000
        self._boards = Boards(parts.queue, parts.packing, engine.log)
        self._runs = JobRuns(parts.queue.types, loop, self._run_ended, engine.log)
        self._hosts: dict[Unit, Host] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._syncer = loop.call_later(self._sync_s, self._sync)
        self._turn = 0
        self._looking_up: asyncio.Task[None] | None = None

    # -- the step

    def pump(self) -> None:
        now_ms = self._engine.clock.read()
        while self._opening.arrived and self._looking_up is None:
            unit, scan = self._opening.arrived[0]
            if unit.open and (schema_id := self._boards.unknown_schema(scan)) is not None:
                self._looking_up = self._loop.create_task(self._look_up(schema_id))
                break
            self._opening.arrived.popleft()
            self._open(unit, scan, now_ms)
        for host in tuple(self._hosts.values()):
            if not host.unit.open:
                del self._hosts[host.unit]
                continue
            self._heard(host, now_ms)
        self._admit(now_ms)
        for host in self._hosts.values():
            if host.endings:
                endings, host.endings = host.endings, []
                host.board.ended(endings, now_ms)
            at_ms = host.board.next_ms()
            if at_ms is not None and at_ms <= now_ms:
                host.board.due(now_ms)
        self._start(now_ms)
        for host in self._hosts.values():
            self._perform(host, now_ms)
        self._set_timer(now_ms)

    async def _look_up(self, schema_id: int) -> None:
        try:
            await self._loop.run_in_executor(None, self._parts.fetch_schema, schema_id)
        except SchemaUnavailable as error:
            self._engine.log.warning("the registry does not answer: a store waits", error=str(error))
            await asyncio.sleep(1)
        except Exception as error:
            self._engine.fail(error)
            return
        self._looking_up = None
        self._engine.wake()

    def _open(self, unit: Unit, scan: StoreScan, now_ms: int) -> None:
        if not unit.open:
            return
        count, strangers = len(scan.entries), len(scan.strangers)
        board = self._boards.restored(unit, scan, now_ms)
        topics = self._engine.parts.topics
        assert topics.state is not None
        headers: Headers = [(STORE_EPOCH, str(unit.epoch).encode())]
        place = Place(
            unit.partition,
            topics.state,
            topics.dead_letters,
            headers,
            lambda letter: letter_of(unit, self._parts.inbox.request, letter),
        )
        writer = StoreWriter(self._engine.parts.producer, place, self._engine.wake)
        host = self._hosts[unit] = Host(unit, board, writer)
        self._engine.log.info(
            "board restored", partition=unit.partition, entries=count, careful=board.careful, strangers=strangers
        )
        self._perform(host, now_ms)

    # -- the inbox

    def _admit(self, now_ms: int) -> None:
        """What has come, in runs of requests of one partition; a command ends a run, since it may be about one of them."""
        if self._opening.arrived or (not self._engine.ready and not self._engine.resumed):
            return
        if any(len(host.writer) > UNWRITTEN_MAX or host.writer.troubled for host in self._hosts.values()):
            return
        taken: list[Delivery] = []
        self._engine.take_many(taken, ADMITTED_AT_ONCE)
        runs: dict[Host, list[tuple[int, JobRequest]]] = {}
        for delivery in taken:
            host = self._hosts.get(delivery.unit)
            if host is None:
                continue  # let go in this very step: its next owner reads it again
            read = self._read(delivery)
            if isinstance(read, JobRequest):
                runs.setdefault(host, []).append((self._number(host, delivery, read), read))
            elif read is not None:
                host.board.admit(runs.pop(host, ()), now_ms)
                host.open[delivery.offset] = delivery
                commands.apply(host.board, read, delivery.offset, now_ms)
        for host, requests in runs.items():
            host.board.admit(requests, now_ms)
        if taken and (self._engine.ready or self._engine.resumed):  # none: the group is paused
            self._engine.wake()

    def _number(self, host: Host, delivery: Delivery, request: JobRequest) -> int:
        """What stands for its offset: that of the inbox, or of what was replayed a number of its own."""
        number = delivery.offset
        if delivery.lane != SOURCE:
            number, host.replayed = host.replayed, host.replayed - 1
        host.open[number] = delivery
        return number

    def _read(self, delivery: Delivery) -> JobRequest | JobCommand | None:
        message = delivery.message
        try:
            read: JobRequest | JobCommand = self._parts.inbox.read(message.value(), max(0, message.timestamp()[1]))
        except SchemaUnavailable as error:
            self._engine.await_schema(delivery, error.schema_id or 0)
            return None
        except CodecError as error:
            self._engine.complete(delivery, failure_of(error, ()))
            return None
        if delivery.lane != SOURCE and isinstance(read, JobRequest):
            return self._replayed(delivery, read)
        return read

    def _replayed(self, delivery: Delivery, request: JobRequest) -> JobRequest | None:
        """A dead letter that was redriven: one more round of a job that is there, a new job where it is forgotten."""
        host = self._hosts[delivery.unit]
        known = host.board.jobs.get(request.id)
        if not isinstance(known, Job):
            return request
        if known.state in GIVEN_UP:
            number = self._number(host, delivery, request)
            commands.apply(host.board, RetryJob(known.id), known.offset + 1, self._engine.clock.now_ms)
            effects = host.board.effects()
            host.board.ledger.effects = [
                *effects[:-1],
                Settle(number),
            ]  # the last one settles an offset that is not its own
            return None
        return request

    # -- jobs

    def _start(self, now_ms: int) -> None:
        """Boards take turns at being first."""
        room = self._concurrency - len(self._runs.running)
        if room <= 0 or self._engine.paused or not self._hosts:
            return
        hosts = list(self._hosts.values())
        self._turn = (self._turn + 1) % len(hosts)
        for host in (*hosts[self._turn :], *hosts[: self._turn]):
            if host.unit.draining or host.writer.troubled or len(host.writer) > UNWRITTEN_MAX:
                continue
            for job in host.board.take(room, now_ms):
                self._runs.start(host, job)
            room = self._concurrency - len(self._runs.running)
            if room <= 0:
                return

    def _run_ended(self, run: Run, ending: JobEnding) -> None:
        host: Host = run.host
        if isinstance(ending, Failure):
            self._engine.stats.failed(ending.kind.value)
            self._engine.log.warning(
                "attempt failed", job=run.job.id, type=run.job.kind.name, attempt=run.job.attempt,
                error=ending.error_type, message=ending.message[:300],
            )  # fmt: skip
        if host.unit.open:
            host.endings.append((run.job, run.version, ending))
            self._engine.wake()

    # -- effects

    def _perform(self, host: Host, now_ms: int) -> None:
        effects = host.board.effects()
        if not effects:
            return
        written: list[Written] = []
        for effect in effects:
            if isinstance(effect, Interrupt):
                self._interrupt(effect)
            else:
                written.append(effect)
        host.writer.write(written, now_ms)
        self._heard(host, now_ms)

    def _interrupt(self, effect: Interrupt) -> None:
        for run in self._runs.running:
            if run.job is effect.job and run.version == effect.version:
                self._runs.interrupt(run, "cancelled")
                return

    def _heard(self, host: Host, now_ms: int) -> None:
        for done in host.writer.hear(now_ms):
            self._done(host, done)

    def _done(self, host: Host, done: Effect) -> None:
        if isinstance(done, Entry):
            if done.gate is not None:
                host.board.stored(done)
                self._engine.wake()
            if done.settles != -1:
                self._settle(host, done.settles)
        elif isinstance(done, Settle):
            self._settle(host, done.offset)
        elif isinstance(done, Letter):
            error = done.record.outcome.error
            self._engine.stats.dead_lettered(error.error_class if error is not None else "")
            host.board.lettered(done.record.request.id, done.record.version)
            self._engine.wake()

    def _settle(self, host: Host, number: int) -> None:
        delivery = host.open.pop(number, None)
        if delivery is not None:
            self._engine.done(delivery)

    # -- time

    def _set_timer(self, now_ms: int) -> None:
        times = [at for host in self._hosts.values() for at in (host.board.next_ms(), host.writer.resend_due(now_ms))]
        at_ms = min((at for at in times if at is not None), default=None)
        if at_ms is None:
            return
        if self._timer is not None:
            if now_ms < self._timer_ms <= at_ms:
                return
            self._timer.cancel()
        self._timer_ms = at_ms
        self._timer = self._loop.call_later(max(1, at_ms - now_ms) / 1000, self._rings)

    def _rings(self) -> None:
        self._timer = None
        self._engine.wake()

    def _sync(self) -> None:
        """As often as is committed: write what has no entry yet, forget what is kept no longer."""
        now_ms = self._engine.clock.read()
        for host in self._hosts.values():
            if host.unit.open and not host.unit.draining:
                host.board.committed = self._engine.committed(host.unit)
                host.board.due(now_ms)
                host.board.sync()
        self._engine.wake()
        self._syncer = self._loop.call_later(self._sync_s, self._sync)

    # -- `Executor`

    def holds(self, unit: Unit) -> bool:
        host = self._hosts.get(unit)
        if host is None:
            return False
        return bool(host.endings or len(host.writer)) or any(run.host is host for run in self._runs.running)

    def cancel(self, unit: Unit) -> None:
        host = self._hosts.get(unit)
        for run in tuple(self._runs.running):
            if run.host is host:
                self._runs.interrupt(run, "let go")

    def running(self) -> int:
        return len(self._runs.running)

    def abandon(self) -> None:
        self._syncer.cancel()
        if self._looking_up is not None:
            self._looking_up.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._runs.abandon()

    async def stop(self) -> None:
        tasks = [run.task for run in self._runs.running]
        self.abandon()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
