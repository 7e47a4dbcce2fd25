"""Rows in which the network between workers and nodes fails: answers lost, requests held back, connections cut, frozen, slow."""

from __future__ import annotations

from tests.fault.ground import NODES
from tests.fault.proxies import Rule
from tests.fault.trial import Trial
from tests.integration.kafka_proxy import END_TXN, OFFSET_COMMIT, PRODUCE, TXN_OFFSET_COMMIT

NAMES = {PRODUCE: "Produce", OFFSET_COMMIT: "OffsetCommit", END_TXN: "EndTxn", TXN_OFFSET_COMMIT: "TxnOffsetCommit"}


def delayed_end_of_transaction(trial: Trial) -> None:
    """Row 7: an EndTxn is held back, its connection cut, and it is let through while a later transaction is open."""
    trial.prepare(2)
    proxies = trial.ground.proxies
    for n in range(5):
        trial.until_done(0.1 + 0.15 * n)
        proxies.rules(Rule(END_TXN, "hold", limit=1))
        trial.wait("an EndTxn is held", proxies.held, 30)
        proxies.rules()
        trial.pause(trial.draw.uniform(0.1, 1.5))
        trial.disturb("EndTxn let through late", proxies.release())
        trial.healed()


def answers_lost(trial: Trial) -> None:
    """Row 8: the broker does what it is asked, and its answer never comes."""
    trial.prepare(2)
    proxies = trial.ground.proxies
    kinds = (PRODUCE, END_TXN, TXN_OFFSET_COMMIT) if trial.plan.eos else (PRODUCE, OFFSET_COMMIT)
    if trial.plan.eos:  # one that is lost holds its transaction up, and few follow: of each kind the first two
        fates = [Rule(kind, "lose answer", limit=2) for kind in kinds]
    else:
        fates = [Rule(kind, "lose answer", every=40 if kind == PRODUCE else 5) for kind in kinds]
    trial.until_done(0.1)
    proxies.rules(*fates)
    trial.until_done(0.8)
    counts = dict(zip(kinds, proxies.met(), strict=True))
    proxies.rules()
    trial.healed()
    for kind, count in counts.items():
        trial.disturb(f"answer to {NAMES[kind]} lost", count)
        if not count:
            trial.problem(f"no answer to {NAMES[kind]} was lost, so the row shows nothing")


def network(trial: Trial) -> None:
    """Row 9: all connections cut; one node behind a frozen network; half-open connections; a slow network; nodes that refuse."""
    trial.prepare(2)
    proxies = trial.ground.proxies
    trial.until_done(0.1)
    for _ in range(3):
        trial.disturb("all connections cut", min(1, proxies.cut()), away=True)
        trial.healed()
        trial.pause(1.0)
    trial.until_done(0.25)
    proxies.freeze(trial.draw.choice(NODES))
    trial.disturb("network to a broker frozen for 6 s", away=True)
    trial.pause(6.0)
    proxies.heal()
    trial.healed()
    trial.until_done(0.4)
    proxies.silence()
    trial.disturb("all connections half-open", away=True)
    trial.healed()
    trial.until_done(0.55)
    proxies.delay(0.1)
    trial.disturb("network slow: 0.1 s a request and answer", away=True)
    trial.pause(5.0)
    proxies.heal()
    trial.healed()
    trial.until_done(0.7)
    proxies.refuse()
    proxies.cut()
    trial.disturb("all brokers away for 5 s", away=True)
    trial.pause(5.0)
    proxies.heal()
    trial.healed()
