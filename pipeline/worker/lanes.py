"""What a subscription fetches: its lanes as they are on the cluster now, and how its source and store are read."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.unit import LaneSpec
from pipeline.model.durations import format_duration
from pipeline.model.policies import Subscription
from pipeline.topology import Layout, retired_of
from pipeline.worker.opening import FetchPolicy
from pipeline.worker.transaction_parts import poll_s

REPLAY = "replay"
POLL_RECORDS = 2_000


def fetch_policy(place: Layout, subscription: Subscription) -> FetchPolicy:
    buffered, topics = subscription.flow.buffered, place.topics
    batch = min(POLL_RECORDS, buffered)
    return FetchPolicy(
        topics.source, place.group, subscription.start, buffered, batch, poll_s(subscription), topics.state
    )


def lane_specs(place: Layout, subscription: Subscription, existing: Sequence[str]) -> tuple[LaneSpec, ...]:
    """The group's lanes that exist now: declared tiers, retired ones that are still there, and the replay lane.

    Retired tiers are read until someone deletes them: they cost nothing when empty, and a rolling deploy may still fill them.
    """
    declared = [
        LaneSpec(format_duration(delay), topic, delay)
        for topic, delay in zip(place.topics.tiers, place.topics.tier_delays_ms, strict=True)
    ]
    retired = [
        LaneSpec(format_duration(t.delay_ms), t.topic, t.delay_ms, declared=False) for t in retired_of(place, existing)
    ]
    return (*declared, *retired, LaneSpec(REPLAY, place.topics.replay, None))
