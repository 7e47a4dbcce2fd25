"""The boards of the partitions that a worker owns: an `Executor` that does not run what it takes, but admits it.

    inbox --take--> board.admit --effects--> StoreWriter --acknowledged--> engine.done (the inbox's offset is settled)
                        | take                    ^
                        '--> JobRuns --ended------'

Everything happens in the engine's thread, in `pump`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.delivery import Delivery
from pipeline.core.jobs import delivering
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import DeliveryWritten, DropBlobs, Effect, Entry, Interrupt, Letter, Packing, Settle
from pipeline.core.jobs.sharing import Sharing
from pipeline.core.jobs.telling import told
from pipeline.core.unit import Unit
from pipeline.model.blobs import Blobs
from pipeline.model.cluster import Headers
from pipeline.model.headers import STORE_AGAIN, STORE_EPOCH
from pipeline.model.job_types import JobQueue
from pipeline.model.jobs import Completed, JobEnding, JobProgress
from pipeline.model.outcome import Failure
from pipeline.model.permissions import Permissions
from pipeline.worker.engine import Engine
from pipeline.worker.jobs.admitting import Admission
from pipeline.worker.jobs.blobs import PayloadBlobs, drop
from pipeline.worker.jobs.boards import Boards, Opening, Restore, Restores
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.handing_on import HandOns
from pipeline.worker.jobs.host import Host
from pipeline.worker.jobs.letters import letter_of
from pipeline.worker.jobs.processes import JobProcesses
from pipeline.worker.jobs.running import JobRuns, Shell
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.strangers import Read, Strangers
from pipeline.worker.jobs.tally import Tally
from pipeline.worker.jobs.values import Values
from pipeline.worker.jobs.writing import Place, StoreWriter, Written

UNWRITTEN_MAX = 20_000
"""Entries that wait for their acknowledgement, at which no more is taken from the inbox and nothing more is started."""

MANY = 64
"""Entries without an answer at which their answers are heard in the engine's thread: in another one each of them would wait for the
interpreter."""


@dataclass(frozen=True, slots=True)
class JobParts:
    """What the composition root hands in. `inbox` is a `codec.jobs.InboxCodec`, `packing` a `StoreCodec`.

    `fetch_schema` asks the registry for a schema of the store; it may wait, and raises SchemaUnavailable. `read` reads the store.
    `home` is for what jobs ask for themselves. `alert` hears of dead letters that are acknowledged.
    """

    queue: JobQueue
    inbox: Any
    packing: Packing
    fetch_schema: Callable[[int], None]
    read: Read
    permissions: Permissions
    home: Home
    blobs: Blobs | None = None
    processes: Mapping[str, JobProcesses] = field(default_factory=dict)
    alert: Callable[[Unit, Letter], None] = lambda _unit, _letter: None


class JobExecutor:
    """See the module, and `parts.Executor`."""

    def __init__(self, engine: Engine, parts: JobParts, opening: Opening, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._parts = parts
        self._loop = loop
        flow = engine.execution.subscription.flow
        self._concurrency = flow.concurrency
        self._sync_s = flow.commit_interval_ms / 1000
        self._restores = Restores(
            engine, Boards(parts.queue, parts.packing, engine.log), opening, parts.fetch_schema, loop
        )
        self._runs = JobRuns(parts.queue.types, self._shell(engine), self._values(engine), parts.processes)
        self._hand_ons = HandOns(engine.parts.producer, self._handed_on, engine.wake)
        self._hosts: dict[Unit, Host] = {}
        self._admission = Admission(engine, parts.inbox, self._hosts)
        self._strangers = Strangers(parts.read, loop, engine.wake, engine.log)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._syncer = loop.call_later(self._sync_s, self._sync)
        self._sharing = Sharing()
        self._left_over: Counter[str] = Counter()
        self.tally = Tally()
        self._given_up: set[Unit] = set()
        self._hearing = False
        engine.concluded, engine.give_up, engine.unwritten = self._concluded, self._give_up, self._unwritten

    def _values(self, engine: Engine) -> Values:
        parts = self._parts
        return Values(parts.queue.types, parts.permissions, PayloadBlobs(engine.parts.topics.source, parts.blobs))

    def _shell(self, engine: Engine) -> Shell:
        return Shell(
            self._loop, self._run_ended, self._run_told, engine.clock.read, engine.log, self._parts.home, engine.fail,
            engine.stalls, self._concurrency, engine.wake,
        )  # fmt: skip

    # -- the step

    def pump(self) -> None:
        now_ms = self._engine.clock.read()
        for restore in self._restores.step(now_ms):
            self._open(restore, now_ms)
        self._hear()
        for host in tuple(self._hosts.values()):
            if not host.unit.open:
                self._drop(host)
                continue
            self._heard(host, now_ms)
        resend_ms = self._hand_ons.step(now_ms)
        if not any(map(_waits, self._hosts.values())):
            self._admission.admit(now_ms)
        for host in self._hosts.values():
            if host.endings:
                endings, host.endings = host.endings, []
                host.board.spread_ms = self._engine.clock.spread_ms
                job, _, ending = endings[0]
                self.tally.sample(job, ending, now_ms)
                host.board.ended(endings, now_ms)
                self._stalled(host)
            at_ms = host.board.next_ms()
            if at_ms is not None and at_ms <= now_ms:
                host.board.due(now_ms)
            if host.unit.draining:
                host.board.chosen.give_back(now_ms)
        self._start(now_ms)
        for host in self._hosts.values():
            self._perform(host, now_ms)
            self._tell_trouble(host)
        self._set_timer(now_ms, resend_ms)

    def _hear(self) -> None:
        if sum(len(host.writer) for host in self._hosts.values()) >= MANY:
            self._hearing = True
            self._engine.parts.producer.hear()
            self._hearing = False

    def _answered(self) -> None:
        """In any thread. What is told while the step hears it is looked at in that step."""
        if not self._hearing:
            self._engine.wake()

    def _tell_trouble(self, host: Host) -> None:
        """A write that is refused is tried again for as long as the partition is ours; each new reason is told."""
        error = str(host.writer.last_error) if host.writer.troubled else ""
        if error and error != host.trouble:
            self._engine.log.error("write refused, trying again", partition=host.unit.partition, error=error)
        host.trouble = error

    def _unwritten(self) -> dict[int, Exception]:
        """Partitions whose store or dead letters take no writes, and why. From any thread."""
        hosts = list(self._hosts.values())
        found = {host.unit.partition: host.writer.last_error for host in hosts if host.writer.troubled}
        return {number: error for number, error in found.items() if error is not None}

    def _drop(self, host: Host) -> None:
        """It belongs to someone else. What still runs takes places until it has ended."""
        del self._hosts[host.unit]
        self._admission.forget(host.unit)
        self._given_up.discard(host.unit)
        host.dropped = True
        self._hand_ons.forget(host)
        self.tally.dropped(host.board)
        self._left_over.update(run.job.kind.name for run in self._runs.running if run.host is host)

    def _open(self, restore: Restore, now_ms: int) -> None:
        unit, board, scan = restore.unit, restore.board, restore.scan
        if not unit.open:
            self._admission.forget(unit)
            return
        topics = self._engine.parts.topics
        assert topics.state is not None
        headers: Headers = [(STORE_EPOCH, str(unit.epoch).encode())]
        again: Headers = [*headers, (STORE_AGAIN, b"")]
        place = Place(
            unit.partition,
            topics.state,
            topics.dead_letters,
            headers,
            again,
            lambda letter: letter_of(unit, self._parts.inbox.request, letter),
        )
        writer = StoreWriter(self._engine.parts.producer, place, self._answered, scan.fence)
        host = self._hosts[unit] = Host(unit, board, writer, scan.begin)
        self._engine.log.info(
            "board restored", partition=unit.partition, entries=restore.entries, read=scan.fence - scan.begin,
            careful=board.careful, strangers=len(scan.strangers),
        )  # fmt: skip
        self._stalled(host)
        self._perform(host, now_ms)
        self._admission.opened(host, now_ms)

    # -- jobs

    def _start(self, now_ms: int) -> None:
        if self._engine.paused or not self._hosts:
            return
        able = {host.board: host for host in self._hosts.values() if not host.unit.draining and not _waits(host)}
        boards = [host.board for host in self._hosts.values()]
        left = self._runs.left
        room = self._concurrency - len(self._runs.running) - len(self._hand_ons) - len(left)
        elsewhere = self._left_over + Counter(run.job.kind.name for run in left) if left else self._left_over
        for board, job in self._sharing.take(boards, list(able), room, elsewhere, now_ms):
            self._runs.start(able[board], job)

    def _run_ended(self, run: Run, ending: JobEnding) -> None:
        host: Host = run.host
        if isinstance(ending, Failure):
            self._engine.stats.failed(ending.kind.value)
            self.tally.failures[run.job.kind.name, ending.kind.value] += 1
            self._engine.log.warning(
                "attempt failed", job=run.job.id, type=run.job.kind.name, attempt=run.job.attempt,
                error=ending.error_type, message=ending.message[:300],
            )  # fmt: skip
        if host.dropped:
            self._left_over[run.job.kind.name] -= 1
        elif host.unit.open and run.asked and isinstance(ending, Completed):
            self._hand_ons.start(run, ending, self._engine.clock.now_ms)
        elif host.unit.open:
            host.endings.append((run.job, run.version, ending))
        self._engine.wake()

    def _stalled(self, host: Host) -> None:
        """Jobs whose worker or process ended with them; they run again, or were given up."""
        lost, host.board.lost = host.board.lost, []
        self._engine.stats.stalled_jobs += len(lost)
        for job_id, type_name, stalls in lost:
            self._engine.log.warning("job stalled", job=job_id, type=type_name, stalls=stalls)

    def _run_told(self, run: Run, progress: JobProgress, write: bool) -> None:
        host: Host = run.host
        if host.unit.open and told(host.board, run.job, run.version, progress, write and not _waits(host)):
            self._engine.wake()

    def _handed_on(self, run: Run, ending: JobEnding) -> None:
        host: Host = run.host
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
        self._hand_ons.cancel(effect.job, effect.version)

    def _heard(self, host: Host, now_ms: int) -> None:
        settled: list[Delivery] = []
        for done in host.writer.hear(now_ms):
            number = -1
            if isinstance(done, Entry):
                number = done.settles
                if done.gate is not None:
                    host.board.stored(done)
                    self._engine.wake()
            elif isinstance(done, Settle):
                number = done.offset
            else:
                self._done(host, done)
            if number != -1 and (delivery := host.open.pop(number, None)) is not None:
                settled.append(delivery)
        if settled:
            self._engine.done_many(settled)

    def _done(self, host: Host, done: Effect) -> None:
        if isinstance(done, DropBlobs):
            if self._parts.blobs is not None:
                self._loop.run_in_executor(None, drop, self._parts.blobs, done.refs, self._engine.log)
        elif isinstance(done, Letter):
            error = done.record.outcome.error
            self._engine.count_dead_letter(error.error_class if error is not None else "")
            self._parts.alert(host.unit, done)
            host.board.lettered(done.record.request.id, done.record.version)
            self._engine.wake()
        elif isinstance(done, DeliveryWritten):
            delivering.written(host.board, done)
            self._engine.wake()

    # -- time

    def _set_timer(self, now_ms: int, resend_ms: int | None) -> None:
        times = [resend_ms]
        times += [at for host in self._hosts.values() for at in (host.board.next_ms(), host.writer.resend_due(now_ms))]
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
                self._sweep(host, now_ms)
        self._strangers.mind(self._hosts.values(), now_ms)
        self._engine.wake()
        self._syncer = self._loop.call_later(self._sync_s, self._sync)

    def _sweep(self, host: Host, now_ms: int) -> None:
        if host.raise_floor():
            self._engine.log.info("store swept", partition=host.unit.partition, floor=host.unit.floor.at)
        if host.sweeps and (floor := host.sweep.step(host.writer.seen)) is not None:
            self._perform(host, now_ms)
            host.swept(floor)

    # -- `Executor`

    def holds(self, unit: Unit) -> bool:
        host = self._hosts.get(unit)
        if host is None:
            return False
        runs = any(run.host is host for run in self._runs.running)
        return runs or bool(host.endings or len(host.writer) or len(host.board.chosen) or self._hand_ons.holds(host))

    def _concluded(self, unit: Unit) -> bool:
        """At the drain's deadline what runs is stopped. That it was let go has to be written, or it would count as a stall."""
        return unit in self._given_up or not self.holds(unit)

    def _give_up(self, _reason: str) -> None:
        """What does not let itself be stopped is a stall."""
        self._given_up.update(unit for unit in self._hosts if unit.draining)
        self._engine.wake()

    def cancel(self, unit: Unit) -> None:
        host = self._hosts.get(unit)
        for run in tuple(self._runs.running):
            if run.host is host:
                self._runs.interrupt(run, "let go")

    def boards(self) -> list[Board]:
        """Those of the partitions that are ours; any thread may ask."""
        return [host.board for host in list(self._hosts.values())]

    def running(self) -> int:
        return len(self._runs.running)

    def abandon(self) -> None:
        self._syncer.cancel()
        self._strangers.stop()
        self._restores.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._runs.abandon()

    async def stop(self) -> None:
        tasks = self._runs.tasks()
        self.abandon()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)


def _waits(host: Host) -> bool:
    """For its writes: nothing more is taken from the inbox, and nothing more is started."""
    return host.writer.troubled or len(host.writer) > UNWRITTEN_MAX
