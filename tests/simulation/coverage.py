"""Which situations a thousand histories have to meet: a fault that never happened proves nothing."""

from __future__ import annotations

from collections import Counter

from tests.simulation.histories import scenario_of, simulated

REQUIRED = (
    # done to the fleet
    *("kill", "stop", "freeze", "thaw", "expel", "start", "retier", "grow", "away", "deny", "gap", "jump", "stall"),
    *("pause", "resume", "skip", "release", "replay"),
    # broker faults
    *("send_failure", "ack_lost", "commit_partition_failure", "commit_lost", "commit_late", "lost_as_revoked"),
    # outcomes
    *("ok", "failed", "rejected", "cancelled", "timed out", "dead letter", "output", "replayed record", "ran released"),
    # paths of a record
    *("hop: retry", "hop: wait", "hop: hop", "wait in memory", "due, but not yet to run", "handed back"),
    *("blocked", "blocked shed", "two copies of one hop", "attempt repeated"),
    # owners
    *("claim with keys parked", "a claim settled a record that was in a lane"),
    "one of two copies of a hop settled before the ending",
    *("zombie's hand-off landed behind a fence", "done beyond the committed offset"),
    "a late commit put a position back",
    # what workers said
    *(
        "log: commit refused",
        "log: write refused, trying again",
        "log: partition lost",
        "log: partition can't be opened",
    ),
    *("log: records of a zombie were found and set aside", "log: drain deadline reached: cancelling what still runs"),
    *("log: subscription paused", "log: subscription resumed"),
    # exactly once
    *("transaction_refused", "transaction_torn", "transaction_late", "transaction_stale", "aborted with records in it"),
    *("standstill", "log: no transaction can be opened, so nothing is done: tried again"),
    *(
        "transaction committed",
        "output read while work went on",
        "log: transaction given up: its records are done again",
    ),
    # held keys
    *(
        "key held",
        "followed a held record",
        "held key let go",
        "sent back to a key that was held",
        "claim with keys held",
    ),
    *("redrive of a held key", "release of a held key", "key held to the end"),
    # clocks, and what is told twice
    *("a clock of its own", "ack_twice", "commit_twice"),
    "log: this machine's clock is not the cluster's: corrected here",
)

JOBS_REQUIRED = (
    # done to the fleet
    *(
        "kill",
        "stop",
        "freeze",
        "thaw",
        "expel",
        "start",
        "away",
        "deny",
        "shut",
        "gap",
        "jump",
        "stall",
        "pause",
        "redrive",
    ),
    "killed while it restored",
    # broker faults
    *(
        "send_failure",
        "ack_lost",
        "ack_twice",
        "commit_partition_failure",
        "commit_lost",
        "commit_late",
        "lost_as_revoked",
    ),
    # executions
    *(
        "job ok",
        "job warned",
        "job failed",
        "job rejected",
        "job cancelled",
        "timed out",
        "attempt repeated",
        "another round",
    ),
    # jobs
    *("state: COMPLETED", "state: COMPLETED_WITH_WARNING", "state: DEAD_LETTER", "state: FAILED", "state: CANCELLED"),
    *(
        "duplicate",
        "tick",
        "forgotten",
        "expired",
        "stalled",
        "careful",
        "a stranger's entry",
        "refused",
        "result waited for",
    ),
    "a clock of its own",
    # what workers said
    *(
        "log: board restored",
        "log: store swept",
        "log: partition lost",
        "log: drain deadline reached: cancelling what still runs",
    ),
)
"""The same of the histories of jobs."""


def missing(seen: Counter[str]) -> list[str]:
    wanted = (*REQUIRED, *(f"jobs: {situation}" for situation in JOBS_REQUIRED))
    return [situation for situation in wanted if not seen[situation]]


def held(seeds: range, seen: Counter[str]) -> list[str]:
    """One line for each history of these that does not hold; what they met is added to `seen`."""
    found = []
    for seed in seeds:
        world = simulated(scenario_of(seed))
        seen.update(world.seen)
        if world.problems:
            found.append(f"seed {seed} (again, and shrunk: make sim SEED={seed}): {'; '.join(world.problems[:3])}")
    return found
