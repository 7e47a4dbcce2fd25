"""Rows in which nodes of the cluster die, move leaders, or can't write."""

from __future__ import annotations

import resource

from tests.fault.ground import NODES
from tests.fault.trial import Trial
from tests.integration.harness import GROUP, until

AWAY_S = 2.0
"""How long a killed node stays away."""


def kill_and_restart(trial: Trial, node: int, what: str) -> None:
    trial.ground.kill(node)
    trial.disturb(what, away=True)
    trial.pause(AWAY_S)
    trial.ground.start(node)
    trial.healed()
    # Two of three must be in sync, or acks=all stops: the next node dies when this one has caught up.
    until("the node has caught up", trial.ground.in_sync, 90)


def brokers_in_turn(trial: Trial) -> None:
    """Row 4: each node is killed and started again, one after the other."""
    trial.prepare(2)
    for number, node in enumerate(NODES):
        trial.until_done(0.1 + 0.25 * number)
        kill_and_restart(trial, node, "broker killed")


def leaders_move(trial: Trial) -> None:
    """Row 5: the leader of a partition of the source is killed; when it is back, leaders are elected back to it under load."""
    trial.prepare(2)
    for share in (0.15, 0.55):
        trial.until_done(share)
        partition = trial.draw.randrange(trial.plan.partitions)
        kill_and_restart(trial, trial.ground.leaders(trial.scene.topic())[partition], "leader killed")
        topics = (trial.scene.topic(), *trial.lanes(), trial.scene.lane("dlq"))
        trial.wait("leaders are elected back", lambda topics=topics: trial.ground.led_by_preferred(topics), 60)
        trial.disturb("leaders elected back")
        trial.healed()


def coordinator_killed(trial: Trial) -> None:
    """Row 6: the node that coordinates the group (with transactions: theirs too, in its turn) is killed."""
    trial.prepare(2)
    group = trial.scene.prefix + GROUP
    for share in (0.15, 0.55):
        trial.until_done(share)
        node = trial.wait("the group has a coordinator", lambda: trial.ground.coordinator(group))
        kill_and_restart(trial, node, "coordinator of the group killed")
    if trial.plan.eos:
        leaders = trial.ground.leaders("__transaction_state")
        kill_and_restart(trial, max(NODES, key=list(leaders.values()).count), "coordinator of transactions killed")


def disk_full(trial: Trial) -> None:
    """Row 12: no file of one node may grow: it ends itself at the next write, as on a full disk. Later it gets its space back."""
    trial.prepare(2)
    for share in (0.15, 0.55):
        trial.until_done(share)
        node = trial.draw.choice(NODES)
        pid = trial.ground.broker.node_pids[node]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_096, 4_096))
        trial.disturb("disk of a broker full", away=True)
        trial.wait("it stops at the full disk", lambda node=node: node not in trial.ground.broker.node_pids, 60)
        trial.pause(AWAY_S)
        trial.ground.start(node)
        trial.healed()
        until("the node has caught up", trial.ground.in_sync, 90)
