"""Clocks that differ: what is certain is corrected, never to the early side; what can't be asked is told once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.clock import difference
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import Cluster, TimeDifference
from pipeline.model.errors import ClusterUnavailable, NotAuthorized
from pipeline.worker.cluster_time import AGAIN_S, ClusterTime
from pipeline.worker.parts import Clock

HOUR_MS = 3_600_000


@given(st.integers(-2 * HOUR_MS, 2 * HOUR_MS), st.integers(0, 5_000), st.integers(0, 5_000))
def test_the_clusters_time_is_never_before_what_is_read_nor_after_what_is_written(
    wrong: int, there: int, back: int
) -> None:
    """A machine whose clock is `wrong` ms ahead of the cluster's asks; the way there and back takes so long."""
    now = 10 * HOUR_MS
    found = difference(now + wrong, now + wrong + there + back, now + there)
    later = now + 60_000
    read = later + wrong + found.ahead_ms
    if found != TimeDifference(0, 0):
        assert read <= later <= read + found.spread_ms
    else:
        assert abs(wrong) <= there + back, "both clocks can be right"


class Asked:
    def __init__(self, *answers: TimeDifference | Exception) -> None:
        self.answers = list(answers)

    def time_difference(self, topic: str, timeout_s: float) -> TimeDifference:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **more: Any) -> None:
        self.lines.append((event, more))


def test_clocks_follow_what_is_measured_and_stay_when_nobody_answers() -> None:
    log = Log()
    time = ClusterTime("clock", log)
    clock = time.keep(Clock(lambda: 5 * HOUR_MS))
    asked = Asked(TimeDifference(-HOUR_MS, 7), ClusterUnavailable("away"), TimeDifference(-HOUR_MS + 2, 1))
    cluster = cast(Cluster, asked)
    assert clock.read() == 5 * HOUR_MS
    time.measure(cluster)
    assert (clock.read(), clock.now_ms, clock.spread_ms) == (4 * HOUR_MS, 4 * HOUR_MS, 7)
    time.measure(cluster)
    assert clock.read() == 4 * HOUR_MS, "what was measured before still holds"
    time.measure(cluster)
    assert (clock.read(), clock.spread_ms) == (4 * HOUR_MS + 2, 1)
    assert time.keep(Clock(lambda: HOUR_MS)).read() == 2, "later ones too"
    assert [more for _, more in log.lines] == [{"ahead_ms": -HOUR_MS}], "told when it changes by more than a second"


@pytest.mark.parametrize("times", [1, 3])
def test_a_cluster_that_may_not_be_asked_is_told_once(times: int) -> None:
    log = Log()
    time = ClusterTime("clock", log)
    for _ in range(times):
        time.measure(cast(Cluster, Asked(NotAuthorized("no Write on clock"))))
    assert [more["why"] for _, more in log.lines] == ["no Write on clock"]


def test_an_error_that_is_none_of_ours_does_not_end_the_measuring() -> None:
    """Its task ended with it, and for as long as the worker lived no clock was corrected any more."""
    log = Log()
    time = ClusterTime("clock", log)
    asked = Asked(SystemError("error return without exception set"), TimeDifference(-HOUR_MS, 7))

    async def main(_loop: VirtualClockLoop) -> None:
        clock = time.keep(Clock(lambda: 5 * HOUR_MS))
        time.start(cast(Cluster, asked))
        await asyncio.sleep(2.5 * AGAIN_S)
        assert clock.read() == 4 * HOUR_MS
        time.stop()

    run(main)
    assert "error return" in str(log.lines[0])
