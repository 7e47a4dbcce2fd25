"""From the inbox to the boards: requests, commands and what is redriven, in the order in which they come.

A record whose schema is not known yet holds up its partition until the registry has answered. What it is nobody can tell: a request of
any key, the first of a dedup window, or what a command behind it is about. One that the registry does not have goes on to the dead
letters, so it holds up nobody for longer than that answer takes.
"""

from __future__ import annotations

from typing import Any

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.jobs import commands
from pipeline.core.unit import Unit
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.jobs import JobCommand, JobRequest
from pipeline.worker.engine import Engine
from pipeline.worker.execution import failure_of
from pipeline.worker.jobs.host import Host

ADMITTED_AT_ONCE = 1_000


class Admission:
    """Owned by the engine's thread. `codec` is a `codec.jobs.InboxCodec`, `hosts` those of the executor."""

    def __init__(self, engine: Engine, codec: Any, hosts: dict[Unit, Host]) -> None:
        self._engine = engine
        self._codec = codec
        self._hosts = hosts
        self._kept: dict[Unit, list[Delivery]] = {}
        """Of partitions whose boards are still being made, or whose first record waits for its schema: a full one is not read on
        (`Regulator`)."""
        self._awaiting: dict[Unit, Delivery] = {}

    def admit(self, now_ms: int) -> None:
        """What has come, in runs of requests of one partition; a command ends a run, since it may be about one of them."""
        engine = self._engine
        if not engine.ready and not engine.resumed:
            return
        taken: list[Delivery] = []
        engine.take_many(taken, ADMITTED_AT_ONCE)
        self._give(self._in_turn(taken), now_ms)
        if taken and (engine.ready or engine.resumed):  # none: the group is paused
            engine.wake()

    def opened(self, host: Host, now_ms: int) -> None:
        """It has its board: what came before."""
        self._give(self._release(host.unit), now_ms)

    def forget(self, unit: Unit) -> None:
        self._kept.pop(unit, None)
        self._awaiting.pop(unit, None)

    def _in_turn(self, taken: list[Delivery]) -> list[Delivery]:
        """Behind one whose schema is known by now: what came of its partition meanwhile."""
        if not self._awaiting:
            return taken
        found: list[Delivery] = []
        for delivery in taken:
            found.append(delivery)
            if self._awaiting.get(delivery.unit) is delivery:
                del self._awaiting[delivery.unit]
                found += self._release(delivery.unit)
        return found

    def _keep(self, delivery: Delivery) -> None:
        self._kept.setdefault(delivery.unit, []).append(delivery)
        delivery.unit.waiting.enter(delivery)

    def _release(self, unit: Unit) -> list[Delivery]:
        kept = self._kept.pop(unit, [])
        for delivery in kept:
            unit.waiting.leave(delivery)
        return kept

    def _give(self, taken: list[Delivery], now_ms: int) -> None:
        runs: dict[Host, list[tuple[int, JobRequest]]] = {}
        for delivery in taken:
            host = self._hosts.get(delivery.unit)
            if host is None or delivery.unit in self._awaiting:
                if delivery.unit.open:  # else it was let go in this very step: its next owner reads it again
                    self._keep(delivery)
                continue
            read = self._read(delivery)
            if read is None:
                continue
            if isinstance(read, JobRequest) and delivery.lane == SOURCE:
                runs.setdefault(host, []).append((host.number(delivery), read))
                continue
            host.board.admit(runs.pop(host, ()), now_ms)
            if isinstance(read, JobRequest):
                self._redriven(host, delivery, read, now_ms)
                continue
            offset = delivery.identity.origin  # a redriven one too counts by where it stood in the inbox
            host.open[offset] = delivery
            commands.apply(host.board, read, offset, now_ms)
        for host, requests in runs.items():
            host.board.admit(requests, now_ms)

    def _redriven(self, host: Host, delivery: Delivery, request: JobRequest, now_ms: int) -> None:
        """One that is not taken is a dead letter again, with the reason: whoever edited it finds it there."""
        number = host.number(delivery)
        failure = commands.redriven(host.board, request, number, now_ms)
        if failure is not None:
            del host.open[number]
            self._engine.complete(delivery, failure)

    def _read(self, delivery: Delivery) -> JobRequest | JobCommand | None:
        message = delivery.message
        try:
            read: JobRequest | JobCommand = self._codec.read(message.value(), max(0, message.timestamp()[1]))
        except SchemaUnavailable as error:
            self._awaiting[delivery.unit] = delivery
            self._engine.await_schema(delivery, error.schema_id or 0)
            return None
        except CodecError as error:
            self._engine.complete(delivery, failure_of(error, ()))
            return None
        return read
