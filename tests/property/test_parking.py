"""Parking against a naive dictionary, and the retry decision against its table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.parking import Holder, Identity, Parking
from pipeline.core.retry import GiveUp, ToTier, WaitInMemory, after_failure, next_hop, tier_for
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import Backoff, RetryPolicy

KEYS = (b"a", b"b", None)
identities = st.builds(Identity, st.integers(0, 8), st.sampled_from(("", "", "r1", "r2")))


def key_of(identity: Identity) -> bytes | None:
    return KEYS[identity.origin % 3]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("observe", "hand_off", "resolve", "step_aside")),
            identities,
            st.integers(0, 4),
            st.integers(1, 3),
        ),
        max_size=60,
    )
)
def test_parking_agrees_with_a_dictionary(steps: list[tuple[str, Identity, int, int]]) -> None:
    parking = Parking()
    holders: dict[Identity, Holder] = {}
    aside: set[Identity] = set()
    for what, identity, hop, lane in steps:
        key = key_of(identity)
        if what == "observe":
            parking.observe(key, identity, hop, lane)
            if identity not in holders or hop > holders[identity].hop:
                holders[identity] = Holder(hop, lane)
        elif what == "hand_off":
            parking.hand_off(key, identity, hop, lane)
            holders[identity] = Holder(hop, lane)
        elif what == "resolve":
            parking.resolve(key, identity)
            holders.pop(identity, None)
            aside.discard(identity)
        else:
            parking.step_aside(key, identity)
            if identity in holders:
                aside.add(identity)
        assert len(parking) == len(holders)
        assert set(parking.keys) == {key_of(i) for i in holders}
        assert sorted(parking.origins()) == sorted(i.origin for i in holders if not i.replay_id)
        for probe in (identity, Identity(identity.origin + 1), Identity(9)):
            waiting = [i for i in holders if key_of(i) == key and i not in aside]
            assert parking.tail_before(key, probe) == max((i for i in waiting if i < probe), default=None)
            assert parking.head(key) == min(waiting, default=None)
            assert parking.holder(probe) == holders.get(probe)
        for at_hop, at_lane in ((hop, lane), (hop + 1, lane), (hop, lane + 1)):
            assert parking.counts(identity, at_hop, at_lane) == (holders.get(identity) == (at_hop, at_lane))


tiers = st.lists(st.integers(1, 10_000), unique=True, max_size=5).map(lambda found: tuple(sorted(found)))
backoffs = st.builds(Backoff, st.integers(0, 2_000), st.floats(1, 100), st.integers(2_000, 1_000_000))


@given(
    st.integers(1, 1_000),
    tiers,
    st.none() | backoffs,
    st.integers(1, 1_001),
    st.sampled_from(FailureKind),
    st.none() | st.integers(0, 100_000),
    st.integers(0, 2**42),
    st.floats(0, 1, exclude_max=True),
)
def test_retry_decision_follows_the_table(
    attempts: int,
    tiers_ms: tuple[int, ...],
    backoff: Backoff | None,
    attempt: int,
    kind: FailureKind,
    after_ms: int | None,
    now_ms: int,
    draw: float,
) -> None:
    policy = RetryPolicy(attempts, tiers_ms, backoff, jitter=0.2)
    decision = after_failure(policy, attempt, Failure(kind, "E", "E", "", after_ms=after_ms), now_ms, draw)
    if kind in (FailureKind.TERMINAL, FailureKind.UNDECODABLE) or attempt >= attempts:
        assert decision == GiveUp()
        return
    wanted_ms = after_ms
    if wanted_ms is None and backoff is not None:
        wanted_ms = backoff.before_retry_ms(attempt)
    if wanted_ms is None:  # the n-th retry goes to the n-th tier, the last one from then on
        expected = (
            ToTier([*range(len(tiers_ms))][min(attempt, len(tiers_ms)) - 1]) if tiers_ms else WaitInMemory(now_ms)
        )
        assert decision == expected
    elif not tiers_ms or wanted_ms < tiers_ms[0]:  # in memory, with jitter, never early
        assert isinstance(decision, WaitInMemory)
        assert now_ms + wanted_ms <= decision.until_ms <= now_ms + wanted_ms * 1.2
    elif wanted_ms <= tiers_ms[-1]:  # rounded up to the smallest tier that is not shorter
        assert isinstance(decision, ToTier)
        assert tiers_ms[decision.tier] >= wanted_ms
        assert decision.tier == 0 or tiers_ms[decision.tier - 1] < wanted_ms
        assert decision.not_before_ms == 0
    else:
        assert decision == ToTier(len(tiers_ms) - 1, now_ms + wanted_ms)


@given(backoffs, st.integers(1, 1_000))
def test_backoff_is_the_formula_and_never_overflows(backoff: Backoff, retry: int) -> None:
    found = backoff.before_retry_ms(retry)
    assert 0 <= found <= backoff.max_delay_ms
    exponent = 0 if backoff.factor == 1 else min(retry - 1, 60)
    assert found >= min(backoff.max_delay_ms, int(backoff.delay_ms * backoff.factor**exponent)) or exponent < retry - 1
    assert found >= (backoff.before_retry_ms(retry - 1) if retry > 1 else 0)


@given(tiers, st.integers(0, 100_000), st.integers(0, 200_000))
def test_hops_bring_a_long_wait_to_its_time_and_not_before(
    tiers_ms: tuple[int, ...], now_ms: int, not_before_ms: int
) -> None:
    hops = 0
    while (tier := next_hop(tiers_ms, not_before_ms, now_ms)) is not None:
        assert now_ms < not_before_ms
        assert tier == tier_for(not_before_ms - now_ms, tiers_ms)
        now_ms += tiers_ms[tier]
        hops += 1
        if hops > 100:
            break
    assert now_ms >= not_before_ms or hops > 100 or not tiers_ms
