"""Rows in which workers die, fall silent, come and go."""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from tests.fault.bound import at_of
from tests.fault.history import Blind
from tests.fault.reading import copies, parts_of, read_all
from tests.fault.trial import Trial
from tests.integration.harness import OUT, SESSION_S, Process

WORKERS_MAX = 3
"""In a storm there may be one more."""


def killed_in_a_handler(trial: Trial) -> None:
    """Row 1: SIGKILL at drawn moments of the load, while handlers run; another takes its place."""
    trial.prepare(3)
    cut = []
    for share in sorted(trial.draw.uniform(0.1, 0.85) for _ in range(4)):
        trial.until_done(share)
        victim = trial.stop_in_a_handler()
        trial.kill(victim)
        cut.append(len(trial.tally.update().running[victim.pid]))
        trial.healed()
        trial.worker()
    trial.result.note = f"{' + '.join(map(str, cut))} handlers had begun and never ended"
    if not all(cut):
        trial.problem("a worker was killed while none of its handlers ran, so that kill shows nothing")


def killed_before_the_commit(trial: Trial) -> None:
    """Row 2: three of four end themselves, one after the other, when what they wrote is acknowledged and its commit is to be sent."""
    trial.make_topics()
    dying = [trial.worker(die_at_commit=trial.draw.randint(low, low + 3)) for low in (2, 8, 14)]
    survivor = trial.worker()
    trial.shared([*dying, survivor])
    trial.begin()
    for _ in range(len(dying)):
        dead = trial.wait(
            "one ended itself", lambda: next((each for each in dying if each.popen.poll() is not None), None), 60
        )
        dying.remove(dead)
        trial.ended(dead, "dead between hand-off and commit")
        trial.healed()


def zombie(trial: Trial) -> None:
    """Row 3: SIGSTOP past session and poll interval, SIGCONT under load; what it does then must change nothing.

    Attempts that fail take a moment, and news of a loss comes late: a worker that is stopped in one wakes up and writes a copy for
    a partition that is not its own any more.
    """
    for _, value in trial.feed.records:
        if isinstance(value, dict) and "fails" in value:
            value["sleep"] = FAILING_S
    trial.prepare(2, hears_late_s=FAILING_S)
    woken: list[tuple[Process, float]] = []
    for share in (0.15, 0.5):
        trial.until_done(share)
        trial.shared(trial.live)
        asleep = trial.stop_in_a_handler(failing=True)
        slept = time.time()
        trial.disturb("worker stopped past its session")
        others = [process for process in trial.live if process is not asleep]
        before = len(asleep.said("partition lost"))
        trial.wait(
            "its partitions have moved",
            lambda others=others: sum(len(p.partitions()) for p in others) == trial.plan.partitions,
            60,
        )
        trial.pause(SESSION_S)
        woken.append((asleep, time.time()))
        asleep.send(signal.SIGCONT)
        trial.wait(
            "the zombie knows",
            lambda asleep=asleep, before=before: len(asleep.said("partition lost")) > before,
            30,
        )
        trial.blind.append(Blind(asleep.pid, slept - 1.0, time.time()))
        trial.healed()
    trial.feed.wait(120 + trial.plan.load_s)
    trial.wait("everything has its ending", trial._all_ended, 120)
    _zombies_wrote(trial, woken)


FAILING_S = 0.3
NEWS_S = 10.0
REFUSED = ("commit refused", "transaction given up: its records are done again")


def _zombies_wrote(trial: Trial, woken: Sequence[tuple[Process, float]]) -> None:
    """They have to have tried: copies of an epoch that was over, commits and transactions that were refused."""
    taken: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for line in (line for process in trial.scene.processes for line in process.said("partition open")):
        taken[line["partition"]].append((at_of(line) * 1000, line["epoch"]))
    lanes = copies(read_all(trial.ground.direct, [*trial.lanes(), trial.scene.lane("dlq")]))
    stale = sum(any(at < c.written_ms and epoch > c.epoch for at, epoch in taken[c.origin[0]]) for c in lanes)
    refused = sum(
        any(at <= at_of(line) <= at + NEWS_S for what in REFUSED for line in zombie.said(what)) for zombie, at in woken
    )
    trial.result.note = f"{stale} copies of an epoch that was over, {refused} of {len(woken)} zombies refused"
    if not stale + refused:
        trial.problem("no zombie wrote or committed anything, so the row shows nothing")


def rebalance_storm(trial: Trial) -> None:
    """Row 10: a worker comes or goes every one or two seconds, gracefully: nothing may run twice."""
    trial.prepare(2)
    come_and_go(trial, trial.worker)
    trial.healed()


def come_and_go(trial: Trial, join: Callable[[], Process]) -> None:
    """Workers, as long as the load; `join` starts one. Nobody waits for it: only who is up is asked to stop."""
    end = time.monotonic() + max(6.0, trial.plan.load_s)
    while time.monotonic() < end:
        up = [worker for worker in trial.live if worker.status()[0] > 0]
        if len(up) > 1 and (len(trial.live) > WORKERS_MAX or trial.draw.random() < 0.5):
            trial.stop(trial.draw.choice(up))
        elif len(trial.live) <= WORKERS_MAX:
            join()
            trial.faults.append("worker joins")
        trial.pause(trial.draw.uniform(1.0, 2.0))
    trial.wait("all are up", lambda: all(worker.status()[0] > 0 for worker in trial.live), 60)


def graceful_deploy(trial: Trial) -> None:
    """Row 21: every worker is replaced under load; zero duplicates, and each ends in its grace period."""
    trial.prepare(2)
    slowest = 0.0
    for share in (0.2, 0.5):
        trial.until_done(share)
        for old in list(trial.live):
            new = trial.worker()
            trial.wait("the new one is up", lambda new=new: new.status()[0] == 200, 60)
            slowest = max(slowest, trial.stop(old))
        trial.healed()
    trial.result.note = f"the slowest stop took {slowest:.1f} s"
    if slowest > 20:
        trial.problem(f"a graceful stop took {slowest:.1f} s")


def long_handlers(trial: Trial) -> None:
    """Row 22: handlers that take longer than max.poll.interval, among the load: no rebalance."""
    trial.make_topics()
    trial.workers(2)
    trial.feed.lengthen(8, 12.0)
    trial.begin()
    trial.faults.append("8 handlers of 12 s, max.poll.interval 4 s")
    trial.feed.wait(60 + trial.plan.load_s)
    opened = [len(process.said("partition open")) for process in trial.live]
    trial.wait("all have their ending", trial._all_ended, 90)
    for process, before in zip(trial.live, opened, strict=True):
        if process.said("partition lost") or len(process.said("partition open")) != before:
            trial.problem("there was a rebalance while handlers were long")


PARTS = 6
DIE_AT = (3, 6, 9)
"""Commits that a worker does not live to see; or the next one after it that has records before it."""


def torn_transaction(trial: Trial) -> None:
    """Row 25: each record writes six outputs to six partitions, and workers end themselves when a transaction with records in it is
    to be committed: a reader beside sees all of a record's outputs or none, each once."""
    trial.make_topics(outputs=PARTS)
    for _, value in trial.feed.records:
        if isinstance(value, dict) and "emit" in value:
            value["parts"] = PARTS
    dying = [trial.worker(die_at_commit=number) for number in DIE_AT]
    trial.shared([*dying, trial.worker()])
    trial.begin()
    while dying:
        dead = trial.wait("one ended itself", lambda: next((w for w in dying if w.popen.poll() is not None), None), 60)
        dying.remove(dead)
        trial.ended(dead, "dead in a transaction")
        trial.healed()
        trial.worker()
    trial.feed.wait(120 + trial.plan.load_s)
    trial.wait("everything has its ending", trial._all_ended, 120)
    trial.wait("everything is committed", trial.drained, 60)
    out = [trial.scene.topic(OUT)]
    committed = read_all(trial.ground.direct, out)
    written = read_all(trial.ground.direct, out, "read_uncommitted")
    beside = trial.beside
    assert beside
    trial.wait("the reader beside has read all", lambda: len(beside.records()) >= len(committed))
    wanted = Counter(
        {(o, part): 1 for o, s in trial.feed.sent.items() for part in range(PARTS) if s.emits and o in trial.tally.done}
    )
    for who, found in (("at the end", committed), ("beside", beside.records())):
        if (parts := parts_of(found)) != wanted:
            trial.problem(f"{who}: {len(wanted - parts)} outputs are missing and {len(parts - wanted)} are too many")
    aborted = len(written) - len(committed)
    trial.result.note = f"{aborted:,} outputs of aborted transactions stand in the log and were never seen"
    if not aborted:
        trial.problem("nothing was aborted, so the row shows nothing")
