"""The application of worker processes under fault: the obedient one, or that of jobs, with what a row does to the process around it.

`HARNESS_SPEC` may say: `skew_ms` (its clock is wrong by that), `die_at_commit` (ends itself before its n-th commit is sent),
`hears_late_s` (of partitions that it lost), `cheat` (breaks a promise on purpose, so that tests of the checker see it turn red).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import FlowPolicy, Pipeline, Settings
from tests.fault.inside import tell_when_asked
from tests.integration import job_scene, obedient
from tests.integration.ledger import Ledger


def _skew(by_ms: int) -> None:
    """The product takes its wall time from here; the ledger does not."""
    right = time.time_ns
    time.time_ns = lambda: right() + by_ms * 1_000_000


def _die_at_commit(number: int) -> None:
    """SIGKILL's stand-in between what was written and the commit of it: the n-th commit, or the next one after it that has records
    before it. In exactly_once it is the commit of a transaction that has records in it."""
    from pipeline.kafka.consumer import KafkaConsumer
    from pipeline.kafka.producer import KafkaProducer
    from pipeline.kafka.transactions import KafkaTransactions

    commits = sent = 0

    def counting(original: Any) -> Any:
        def send(*given: Any, **more: Any) -> None:
            nonlocal sent
            sent += 1
            original(*given, **more)

        return send

    def deadly(original: Any) -> Any:
        def commit(*given: Any) -> None:
            nonlocal commits, sent
            commits += 1
            if commits >= number and sent:
                os._exit(9)
            sent = 0
            original(*given)

        return commit

    for writer in (KafkaProducer, KafkaTransactions):
        writer.send = counting(writer.send)  # type: ignore[attr-defined]
    for committer in (KafkaConsumer, KafkaTransactions):
        committer.commit = deadly(committer.commit)  # type: ignore[attr-defined]


def _hear_late(by_s: float) -> None:
    """The thread that polls comes last after a sleep of the whole process: handlers end, and producers send, before a loss is known."""
    from pipeline.kafka.consumer import KafkaConsumer

    lost: Any = KafkaConsumer._lost

    def late(*given: Any) -> None:
        time.sleep(by_s)
        lost(*given)

    KafkaConsumer._lost = late  # type: ignore[method-assign]


def _commit_early() -> None:
    """Everything received counts as settled."""
    from pipeline.core.offsets import OffsetTracker
    from pipeline.core.progress import Progress

    def progress(self: Any, epoch: int = 0, fences: Any = None) -> Progress:
        return Progress(self.next_offset, self.next_offset, (), epoch, fences or {})

    OffsetTracker.progress = progress  # type: ignore[method-assign]
    OffsetTracker.position = property(lambda self: self.next_offset)  # type: ignore[assignment, method-assign]


def _commit_rarely() -> None:
    """Only when a partition is let go."""
    from pipeline.worker.quarantine import Quarantine

    Quarantine.commit_interval_s = lambda self, flow: 600.0  # type: ignore[method-assign]


def _retry_early() -> None:
    """The tier's delay does not count."""
    from pipeline.core.unit import Unit

    Unit._due = lambda self, lane, now_ms: now_ms  # type: ignore[method-assign]


class _TwiceLedger(Ledger):
    """Every 40th record is done twice."""

    def mark(self, what: str, ctx: Any) -> None:
        super().mark(what, ctx)
        if what == "done" and ctx.offset % 40 == 0:
            super().mark(what, ctx)


class _SkippingLedger(Ledger):
    """Every 40th record counts as done, and nothing was done."""

    def mark(self, what: str, ctx: Any) -> None:
        if ctx.offset % 40:
            super().mark(what, ctx)


_CHEATS: dict[str, Callable[[], None]] = {
    "commit early": _commit_early,
    "commit rarely": _commit_rarely,
    "retry early": _retry_early,
}
_LEDGERS: dict[str, type[Ledger]] = {"twice": _TwiceLedger, "skip": _SkippingLedger}


def make_app(spec: dict[str, Any]) -> Pipeline:
    if spec.get("skew_ms"):
        _skew(spec["skew_ms"])
    if spec.get("die_at_commit"):
        _die_at_commit(spec["die_at_commit"])
    if spec.get("hears_late_s"):
        _hear_late(spec["hears_late_s"])
    cheat = spec.get("cheat", "")
    if cheat in _CHEATS:
        _CHEATS[cheat]()
    if spec["kind"] == "jobs":
        return job_scene.make_app(spec)
    ledger = _LEDGERS.get(cheat, Ledger)(Path(spec["ledger"]))
    if spec["kind"] in ("avro", "effects"):
        return _noting_app(spec, ledger)
    return obedient.make_app(spec, ledger)


def _noting_app(spec: dict[str, Any], ledger: Ledger) -> Pipeline:
    """`avro`: typed events. `effects`: a line with the idempotency key for each execution, as an effect outside Kafka would have it."""
    app = Pipeline("t", settings=Settings(**spec["settings"]))
    arguments = {"group": obedient.GROUP, "value": "avro" if spec["kind"] == "avro" else "json", **spec["subscribe"]}
    arguments["flow"] = FlowPolicy(**arguments["flow"])
    effects = os.open(spec["ledger"] + ".effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    @app.subscribe(obedient.SOURCE, **arguments)
    async def note(value: Any, ctx: Any) -> None:
        ledger.mark("start", ctx)
        if spec["kind"] == "effects":
            os.write(effects, ctx.idempotency_key.encode() + b"\n")
        ledger.mark("done", ctx)

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return tell_when_asked(make_app(json.loads(os.environ["HARNESS_SPEC"])))
    raise AttributeError(name)
