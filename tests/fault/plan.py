"""The fault plan as data: its 31 rows, what each is checked by, and in which variants it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fault import rows_brokers, rows_jobs, rows_killers, rows_network, rows_records, rows_topics, rows_workers
from tests.fault.feed import Mix
from tests.fault.trial import Trial

CLASSIC: dict[str, Any] = {}
KIP_848: dict[str, Any] = {"protocol": "consumer"}
EOS: dict[str, Any] = {"eos": True}
WHOLE: dict[str, Any] = {"kind": "async", "lasts_s": 16.0}
DECODER: dict[str, Any] = {"kind": "avro"}
BUSY = Mix(slow=0.03, slow_s=0.5)
"""Some handlers run at any time, so that a fault can hit them."""
POISONED = Mix(poison=0.004, rejected=0.006)


@dataclass(frozen=True, slots=True)
class Row:
    """`share`: of the records of a row, for a variant of it. `judged`: the row compares by itself, without a group's history.
    `beside_s`: how long a trial takes beside its load."""

    number: int
    fault: str
    checks: str
    run: Callable[[Trial], None]
    variants: tuple[dict[str, Any], ...] = (CLASSIC,)
    plan: tuple[tuple[str, Any], ...] = ()
    share: float = 1.0
    judged: bool = False
    beside_s: float = 30.0

    def name(self, variant: dict[str, Any]) -> str:
        kinds = ["exactly_once"] * bool(variant.get("eos")) + ["KIP-848"] * (variant.get("protocol") == "consumer")
        kinds += ["the whole worker"] * (variant is WHOLE) + ["recursive Avro"] * (variant is DECODER)
        return f"{self.fault}{' (' + ', '.join(kinds) + ')' if kinds else ''}"


def _row(number: int, fault: str, checks: str, run: Any, *variants: dict[str, Any], **more: Any) -> Row:
    own = {name: more.pop(name) for name in ("share", "judged", "beside_s") if name in more}
    return Row(number, fault, checks, run, variants or (CLASSIC,), tuple(more.items()), **own)


CHILDREN = {
    "kind": "def",
    "subscribe": {"executor": "process", "isolation": {"deaths": 3, "processes": 2}},
    "graceful": True,
}
SILENT = {"max_poll_interval_s": 4.0}
JOINING = {"max_poll_interval_s": 20.0}
"""librdkafka waits so long, and 3 s more, for the answer to a JoinGroup: so late it finds out that its connection is dead."""
ROWS = (
    _row(1, "worker killed in a handler", "I1-I4, I6", rows_workers.killed_in_a_handler, CLASSIC, KIP_848, EOS, mix=BUSY),
    _row(2, "killed between hand-off and commit", "I2, I4, I5", rows_workers.killed_before_the_commit, CLASSIC, EOS, lasts_s=20.0),
    _row(3, "zombie", "I2, I3, epoch fence", rows_workers.zombie, CLASSIC, KIP_848, EOS, settings=SILENT, lasts_s=20.0, mix=BUSY),
    _row(4, "brokers killed in turn", "I1-I5, I7", rows_brokers.brokers_in_turn, CLASSIC, EOS, lasts_s=16.0),
    _row(5, "leaders move", "I3, I2", rows_brokers.leaders_move, lasts_s=16.0),
    _row(6, "coordinator killed", "I5, I7", rows_brokers.coordinator_killed, CLASSIC, EOS, lasts_s=16.0),
    _row(7, "delayed EndTxn", "no aborted record visible", rows_network.delayed_end_of_transaction, EOS, proxied=True),
    _row(8, "lost answers", "I2, I5", rows_network.answers_lost, CLASSIC, EOS, proxied=True),
    _row(9, "network cut, half-open, slow", "I1, I7", rows_network.network, CLASSIC, EOS, settings=JOINING, proxied=True, lasts_s=16.0),
    _row(10, "rebalance storm", "I3, I4, I7", rows_workers.rebalance_storm, CLASSIC, KIP_848, graceful=True, lasts_s=16.0),
    _row(11, "clocks an hour wrong", "I8, no tier skipped", rows_topics.clock_skew, mix=Mix(failing=0.04)),
    _row(12, "disk full", "acknowledged records readable", rows_brokers.disk_full, lasts_s=16.0),
    _row(13, "handler raises for ever", "one dead letter each", rows_records.poison, mix=POISONED, graceful=True),
    _row(14, "undecodable", "raw bytes, no retry", rows_records.undecodable, graceful=True),
    _row(15, "process killer", "quarantined", rows_killers.process_killers, CHILDREN, WHOLE, DECODER, share=0.1),
    _row(16, "bomb batch", "pointer record, the partition moves on", rows_records.bombs, lasts_s=12.0),
    _row(17, "registry down, cold and warm", "never a dead letter", rows_records.registry_down, graceful=True),
    _row(18, "duplicate producer", "one effect; the older is fenced", rows_records.duplicate_producer, graceful=True),
    _row(19, "dead letters not writable", "offset stays, alarm", rows_topics.dead_letters_refused, proxied=True),
    _row(20, "replay killed, two at once", "bounded duplicates", rows_topics.replays_killed, judged=True, share=0.25),
    _row(21, "graceful deploy", "zero duplicates", rows_workers.graceful_deploy, CLASSIC, KIP_848, EOS, graceful=True),
    _row(22, "handler longer than max.poll.interval", "no rebalance", rows_workers.long_handlers, settings=SILENT, graceful=True),
    _row(23, "retention shorter than the delay", "refuses to start", rows_topics.retention_too_short, graceful=True),
    _row(24, "partitions added", "detected and reported", rows_topics.partitions_added, lasts_s=16.0, mix=Mix(failing=0.05)),
    _row(25, "torn transaction", "all or none", rows_workers.torn_transaction, EOS, lasts_s=16.0),
    _row(26, "jobs: worker killed", "I1-I4, one ending, dedup", rows_jobs.killed, judged=True, lasts_s=12.0),
    _row(27, "jobs: zombie", "I2, I3, one ending", rows_jobs.zombie, judged=True, lasts_s=20.0),
    _row(28, "jobs: brokers killed in turn", "I1-I4", rows_jobs.brokers_in_turn, judged=True, lasts_s=16.0),
    _row(29, "jobs: rebalance storm", "I1-I4, nothing twice", rows_jobs.rebalance_storm, judged=True, graceful=True, lasts_s=16.0),
    _row(30, "jobs: killed between store and commit", "I1-I4, one ending", rows_jobs.killed_before_the_commit, judged=True, lasts_s=20.0),
    _row(31, "jobs: redrive killed", "one more round each, in order", rows_jobs.redrive_killed, judged=True, share=0.1),
)  # fmt: skip
