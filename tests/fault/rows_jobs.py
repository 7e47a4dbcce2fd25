"""Rows 26 to 29: what happens to records in rows 1, 3, 4 and 10 happens to background jobs."""

from __future__ import annotations

import signal
import time

from tests.fault.ground import NODES
from tests.fault.jobs_at_fault import jobs_of
from tests.fault.rows_brokers import kill_and_restart
from tests.fault.trial import Trial
from tests.integration.harness import SESSION_S


def killed(trial: Trial) -> None:
    """Row 26: SIGKILL while jobs run; another takes its place."""
    with jobs_of(trial, 3) as jobs:
        for share in sorted(trial.draw.uniform(0.1, 0.7) for _ in range(3)):
            jobs.until_done(share)
            trial.kill(jobs.caught())
            jobs.worker()


def zombie(trial: Trial) -> None:
    """Row 27: SIGSTOP past the session while jobs run, SIGCONT under load."""
    with jobs_of(trial) as jobs:
        for share in (0.15, 0.5):
            jobs.until_done(share)
            asleep = jobs.caught()
            before = len(asleep.said("partition lost"))
            asleep.send(signal.SIGSTOP)
            trial.disturb("worker stopped past its session")
            others = [process for process in trial.live if process is not asleep]
            trial.wait(
                "its partitions have moved",
                lambda others=others: sum(len(p.partitions()) for p in others) == trial.plan.partitions,
                60,
            )
            trial.pause(SESSION_S / 2)
            asleep.send(signal.SIGCONT)
            trial.wait(
                "the zombie knows",
                lambda asleep=asleep, before=before: len(asleep.said("partition lost")) > before,
                30,
            )


def brokers_in_turn(trial: Trial) -> None:
    """Row 28: each node is killed and started again, one after the other."""
    with jobs_of(trial) as jobs:
        for number, node in enumerate(NODES):
            jobs.until_done(0.1 + 0.2 * number)
            kill_and_restart(trial, node, "broker killed")


def rebalance_storm(trial: Trial) -> None:
    """Row 29: a worker comes or goes every one or two seconds, in order: nothing runs twice."""
    with jobs_of(trial) as jobs:
        end = time.monotonic() + max(6.0, trial.plan.load_s)
        while time.monotonic() < end:
            if len(trial.live) > 3 or (len(trial.live) > 1 and trial.draw.random() < 0.5):
                trial.stop(trial.draw.choice(trial.live))
            else:
                new = jobs.worker()
                trial.wait("it is up", lambda new=new: new.status()[0] > 0, 60)
                trial.faults.append("worker joins")
            trial.pause(trial.draw.uniform(1.0, 2.0))
