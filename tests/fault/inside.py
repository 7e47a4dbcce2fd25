"""What a worker process is doing, written to its log on SIGUSR2: the stacks of its threads, and where its subscriptions stand.

For a trial that does not come to its end: afterwards the process is gone, and with it the only one that knows why.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from typing import Any

from pipeline import Pipeline

SIGNAL = signal.SIGUSR2


def tell_when_asked(app: Pipeline) -> Pipeline:
    """Call it in the main thread of the process."""

    def told(*_: object) -> None:
        faulthandler.dump_traceback(all_threads=True)
        for running in app.worker.running if app.worker is not None else ():
            print(_standing(running), file=sys.stderr, flush=True)

    signal.signal(SIGNAL, told)
    return app


def _standing(running: Any) -> str:
    """Nothing is asked of the consumer itself: it admits one caller at a time, and the poll thread is one."""
    engine, fetcher = running.engine, running.fetcher
    lines = [
        f"{running.subscription.group}: paused {engine.paused}, inbox {len(engine._inbox)}, ready {len(engine.ready)}"
    ]
    if (transactions := engine.transactions) is not None:
        lines.append(
            f"transactions: {transactions.state}, waiting {len(transactions._waiting)}, taken {transactions._taken}, "
            f"looked at {transactions._looked_at}, sent {transactions._sent}, asked {transactions._number}, "
            f"failed {transactions._failed}, {transactions.counts}"
        )
    lines.append(
        f"fetcher: commands {len(fetcher._commands)}, opening {fetcher._opening}, paused {fetcher._paused}, "
        f"held {fetcher._held}, backlog {engine.backlog(fetcher._fetched)}"
    )
    consumer = fetcher._consumer
    ids = f"commits as {consumer._committer.member_id}, doubtful {consumer._doubtful}"
    lines.append(f"consumer: {ids}, fetched from {consumer._starts}, paused {consumer._paused}")
    for unit in engine._ownership.units:
        lanes = ", ".join(f"{lane.spec.name} {lane.tracker.position}/{lane.tracker.next_offset}" for lane in unit.lanes)
        state = f"epoch {unit.epoch}, draining {unit.draining}, parked {len(unit.parking)}, care {unit.care}"
        lines.append(f"partition {unit.partition}: {state}; {lanes}")
    return "\n".join(lines)
