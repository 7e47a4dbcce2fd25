"""Runs rows of the plan one after the other, each in its variants, on a cluster that is made anew when it can't be mended."""

from __future__ import annotations

import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from tests.fault.ground import Ground, ground
from tests.fault.plan import Row
from tests.fault.trial import Plan, Result, Trial, tell

START_S = 20.0
"""Three nodes start."""


def trials(rows: Sequence[Row], only: str = "") -> list[tuple[Row, dict[str, Any]]]:
    """Every row in each of its variants; `only`: those whose name says that."""
    return [(row, variant) for row in rows for variant in row.variants if only in row.name(variant)]


def seed_of(seed: int, row: Row, variant: dict[str, Any]) -> int:
    """Each trial draws by itself, so that one alone repeats what it drew among all."""
    return seed * 1_000_003 + zlib.crc32(f"{row.number}{sorted(variant.items())}".encode())


def planned(row: Row, variant: dict[str, Any], plan: Plan) -> Plan:
    """How this trial is set up. Nothing in it is shared with another."""
    made = replace(plan, **{**dict(row.plan), **variant})
    return replace(
        made,
        seed=seed_of(plan.seed, row, variant),
        records=max(1, int(made.records * row.share)),
        settings=dict(made.settings),
        subscribe=dict(made.subscribe),
    )


def estimate_s(chosen: Sequence[tuple[Row, dict[str, Any]]], plan: Plan) -> float:
    """How long a run takes: the loads, and what comes before and after each, as seen on a quiet machine with two cores."""
    return START_S + sum(planned(row, variant, plan).load_s + row.beside_s for row, variant in chosen)


def run_trial(ground: Ground, row: Row, variant: dict[str, Any], plan: Plan, say: Callable[[str], None]) -> Result:
    """Whatever goes wrong is in the result. The ground is whole again afterwards, or `GroundLost` with the result is raised."""
    trial = Trial(ground, row.number, row.name(variant), planned(row, variant, plan), say)
    began = time.monotonic()
    try:
        with trial:
            row.run(trial)
            if row.judged:
                trial.result.faults = tell(trial.faults)
            else:
                trial.finish()
    except Exception as error:
        trial.result.faults = tell(trial.faults)
        say("".join(traceback.format_exception(error)[-3:]))
        trial.result.records = trial.result.records or len(trial.feed.sent)
        trial.problem(f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no words'}")
    trial.result.seconds = time.monotonic() - began
    try:
        ground.restore()
    except Exception as error:
        raise GroundLost(trial.result, str(error).splitlines()[0]) from error
    return trial.result


class GroundLost(Exception):
    """The cluster did not become whole again after a trial; the trial's result stands."""

    def __init__(self, result: Result, why: str) -> None:
        super().__init__(why)
        self.result = result


def run_rows(
    chosen: Sequence[tuple[Row, dict[str, Any]]],
    plan: Plan,
    say: Callable[[str], None],
    make_ground: Callable[[], AbstractContextManager[Ground]] = ground,
) -> Iterator[Result]:
    """A result as soon as there is one."""
    left = list(enumerate(chosen, start=1))
    while left:
        with make_ground() as field:
            while left:
                number, (row, variant) = left.pop(0)
                where = f"[{number}/{len(chosen)}] row {row.number}"
                say(f"{where}: {row.name(variant)}")
                try:
                    yield run_trial(field, row, variant, plan, lambda text, where=where: say(f"{where}: {text}"))  # type: ignore[misc]
                except GroundLost as lost:
                    say(f"{where}: the cluster is not whole again, and made anew: {lost}")
                    yield lost.result
                    break
