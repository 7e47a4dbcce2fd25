"""Rows 26 to 31: what happens to records in rows 1, 3, 4, 10, 2 and 20 happens to background jobs."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from itertools import pairwise

from pipeline.dead_letters import redrive_dead_letters
from pipeline.dead_letters.api import OPEN
from pipeline.model.job_states import JobState
from tests.fault.ground import NODES
from tests.fault.jobs_at_fault import KEYS, Jobs, jobs_of
from tests.fault.rows_brokers import kill_and_restart
from tests.fault.rows_workers import come_and_go
from tests.fault.trial import Trial
from tests.integration.harness import SESSION_S
from tests.integration.job_scene import make_app
from tests.integration.redrive_process import ANA
from tests.integration.redrive_process import killed as killed_redrive


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
        come_and_go(trial, jobs.worker)


def killed_before_the_commit(trial: Trial) -> None:
    """Row 30: three of four workers end themselves when what their jobs came to is acknowledged and the inbox's commit is to be sent."""
    jobs = Jobs(trial)
    dying = [jobs.worker(die_at_commit=trial.draw.randint(low, low + 3)) for low in (2, 8, 14)]
    jobs.begin([*dying, jobs.worker()])
    while dying:
        dead = trial.wait(
            "one ended itself", lambda: next((each for each in dying if each.popen.poll() is not None), None), 60
        )
        dying.remove(dead)
        trial.ended(dead, "dead between store and commit")
    jobs.finish()


def redrive_killed(trial: Trial) -> None:
    """Row 31: every job is given up; a redrive of all is killed at each of its stages and taken up. Each has one more round: the store
    knows a letter that comes twice."""
    jobs = Jobs(trial, attempts=1)
    trial.shared([jobs.worker(), jobs.worker()])
    mended = trial.scene.folder / "mended"
    count = trial.plan.records
    trial.say(f"{count:,} jobs that are given up")
    asyncio.run(_ask(jobs, count, str(mended)))
    trial.wait("all are dead letters", lambda: jobs.scene.count(jobs.scene.dead_jobs) >= count, 120)
    mended.touch()
    for stage in ("audited", "sent", "acknowledged", "recorded"):
        killed_redrive(jobs.scene, stage, "default")
        trial.disturb(f"redrive killed when {stage}")
    app = jobs.scene.app(state_dir=str(jobs.scene.folder / "state"))
    end = redrive_dead_letters(app, OPEN, ANA, group="default", canary=0).end
    if end != "finished":
        trial.problem(f"the redrive that was not killed ended: {end}")
    trial.wait("all are done", lambda: len(set(jobs.scene.jobs.names("done"))) >= count, 120)
    trial.wait("the inbox is settled", jobs.scene.inbox_settled, 60)
    for process in list(trial.live):
        trial.stop(process)
    _judge_redrive(trial, jobs, count)


async def _ask(jobs: Jobs, count: int, mended: str) -> None:
    """One of each key at a time, so that they are in order."""
    app = make_app(jobs.spec())
    for first in range(0, count, KEYS):
        asked = (
            app.enqueue("obey", {"name": f"{number}", "mended": mended}, key=f"k{number % KEYS}")
            for number in range(first, min(count, first + KEYS))
        )
        await asyncio.gather(*asked)
    await app.stop()


def _judge_redrive(trial: Trial, jobs: Jobs, count: int) -> None:
    done = jobs.scene.jobs.told("done")
    numbers = defaultdict(list)
    for name, key in dict.fromkeys((each.name, each.key) for each in done):
        numbers[key].append(int(name))
    result = trial.result
    result.records, result.lost = count, count - len({each.name for each in done})
    result.duplicates = len(done) - len({each.id for each in done})
    result.order_breaks = sum(a > b for each in numbers.values() for a, b in pairwise(each))
    unended = count - Counter(jobs.newest().values())[JobState.COMPLETED]
    letters = jobs.scene.count(jobs.scene.dead_jobs.removesuffix("dlq") + "replay")
    result.note = f"{letters - count:,} letters came twice"
    for many, what in (
        (result.lost, "jobs are lost"),
        (result.duplicates, "jobs had two rounds"),
        (result.order_breaks, "jobs of a key ended out of order"),
        (unended, "jobs are not completed, says the store"),
    ):
        if many:
            trial.problem(f"{many} {what}")
