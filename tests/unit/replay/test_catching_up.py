"""When is a group that started in the past live, and what is said on the way."""

from __future__ import annotations

from pipeline.replay.catching_up import CatchUp, Sight


def sight(second: float, lag: int, end: int, members: int = 1) -> Sight:
    return Sight(round(second * 1000), lag, end, members)


def test_done_counts_past_records_only_and_the_rest_of_time_counts_what_comes_in() -> None:
    catch_up = CatchUp(sight(0, 1_000, 1_000))
    way = catch_up.observe(sight(10, 600, 1_100))  # 500 done in 10 s, 100 came in
    assert (way.done, way.total, way.rate, way.incoming) == (500, 1_000, 50.0, 10.0)
    assert way.left_s == 600 / 40
    assert not way.live
    way = catch_up.observe(sight(20, 100, 1_200))  # 1,100 done in all, 1,000 of them past
    assert (way.done, way.lag) == (1_000, 100)
    assert not way.live


def test_live_is_less_lag_than_a_second_brings_and_somebody_there() -> None:
    catch_up = CatchUp(sight(0, 100, 100))
    assert not catch_up.observe(sight(1, 21, 120)).live
    assert catch_up.observe(sight(2, 20, 140)).live
    assert not CatchUp(sight(0, 0, 100, 0)).observe(sight(1, 0, 100, 0)).live, "nobody works"
    assert CatchUp(sight(0, 0, 100)).observe(sight(1, 0, 100)).live, "nothing comes, nothing waits"
    assert not CatchUp(sight(0, 1, 100)).observe(sight(1, 1, 100)).live, "nothing comes, one waits"


def test_without_gain_nobody_knows_how_long() -> None:
    catch_up = CatchUp(sight(0, 100, 100))
    way = catch_up.observe(sight(1, 200, 250))
    assert (way.rate, way.incoming, way.left_s, way.live) == (50.0, 150.0, None, False)
    way = CatchUp(sight(0, 100, 100)).observe(sight(0, 100, 100))  # two looks at one moment
    assert (way.rate, way.left_s) == (0.0, None)


def test_rates_are_those_of_the_last_seconds() -> None:
    catch_up = CatchUp(sight(0, 10_000, 10_000))
    for second in range(1, 61):
        way = catch_up.observe(sight(second, 10_000 - second, 10_000))
    assert way.rate == 1.0
    for second in range(61, 91):
        way = catch_up.observe(sight(second, 10_000 - 60 - (second - 60) * 100, 10_000))
    assert 95 < way.rate <= 100


def test_a_topic_that_shrinks_under_retention_is_no_negative_rate() -> None:
    way = CatchUp(sight(0, 100, 100)).observe(sight(1, 150, 100))
    assert (way.done, way.rate) == (0, 0.0)
