"""From the inbox to the boards: requests and commands, as they come."""

from __future__ import annotations

from typing import Any

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.jobs import commands
from pipeline.core.jobs.entries import Settle
from pipeline.core.jobs.job import Job
from pipeline.core.unit import Unit
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.job_states import GIVEN_UP
from pipeline.model.jobs import JobCommand, JobRequest
from pipeline.worker.engine import Engine
from pipeline.worker.execution import failure_of
from pipeline.worker.jobs.host import Host

ADMITTED_AT_ONCE = 1_000
EARLY_MAX = 20_000
"""Records of partitions whose boards are still being made, at which nothing more is taken."""


class Admission:
    """Owned by the engine's thread. `codec` is a `codec.jobs.InboxCodec`, `hosts` those of the executor."""

    def __init__(self, engine: Engine, codec: Any, hosts: dict[Unit, Host]) -> None:
        self._engine = engine
        self._codec = codec
        self._hosts = hosts
        self._early: dict[Unit, list[Delivery]] = {}

    def admit(self, now_ms: int) -> None:
        """What has come, in runs of requests of one partition; a command ends a run, since it may be about one of them."""
        engine = self._engine
        if not engine.ready and not engine.resumed:
            return
        if self._early and sum(map(len, self._early.values())) > EARLY_MAX:
            return
        taken: list[Delivery] = []
        engine.take_many(taken, ADMITTED_AT_ONCE)
        self._give(taken, now_ms)
        if taken and (engine.ready or engine.resumed):  # none: the group is paused
            engine.wake()

    def opened(self, host: Host, now_ms: int) -> None:
        """It has its board: what came before."""
        self._give(self._early.pop(host.unit, []), now_ms)

    def forget(self, unit: Unit) -> None:
        self._early.pop(unit, None)

    def _give(self, taken: list[Delivery], now_ms: int) -> None:
        runs: dict[Host, list[tuple[int, JobRequest]]] = {}
        for delivery in taken:
            host = self._hosts.get(delivery.unit)
            if host is None:
                if delivery.unit.open:  # else it was let go in this very step: its next owner reads it again
                    self._early.setdefault(delivery.unit, []).append(delivery)
                continue
            read = self._read(host, delivery)
            if isinstance(read, JobRequest):
                runs.setdefault(host, []).append((host.number(delivery), read))
            elif read is not None:
                host.board.admit(runs.pop(host, ()), now_ms)
                host.open[delivery.offset] = delivery
                commands.apply(host.board, read, delivery.offset, now_ms)
        for host, requests in runs.items():
            host.board.admit(requests, now_ms)

    def _read(self, host: Host, delivery: Delivery) -> JobRequest | JobCommand | None:
        message = delivery.message
        try:
            read: JobRequest | JobCommand = self._codec.read(message.value(), max(0, message.timestamp()[1]))
        except SchemaUnavailable as error:
            self._engine.await_schema(delivery, error.schema_id or 0)
            return None
        except CodecError as error:
            self._engine.complete(delivery, failure_of(error, ()))
            return None
        if delivery.lane != SOURCE and isinstance(read, JobRequest):
            return self._replayed(host, delivery, read)
        return read

    def _replayed(self, host: Host, delivery: Delivery, request: JobRequest) -> JobRequest | None:
        """A dead letter that was redriven: one more round of a job that is there, a new job where it is forgotten."""
        known = host.board.jobs.get(request.id)
        if not isinstance(known, Job):
            return request
        if known.state in GIVEN_UP:
            commands.another_round(host.board, known, known.offset, self._engine.clock.now_ms)
            host.board.ledger.effects.append(Settle(host.number(delivery)))
            return None
        return request
