"""What happens to a record whose execution failed: wait in memory, go to a tier, or end in the dead letters."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.outcome import Failure
from pipeline.model.policies import RETRIED, RetryPolicy


@dataclass(frozen=True, slots=True)
class WaitInMemory:
    """Shorter than the first tier: the key stays blocked until `until_ms`."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class ToTier:
    """Index into the declared tiers. `not_before_ms` > 0 when the wait is longer than the last tier: it hops again when due."""

    tier: int
    not_before_ms: int = 0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """To the dead letters."""


Decision = WaitInMemory | ToTier | GiveUp


def tier_for(delay_ms: int, tiers_ms: tuple[int, ...]) -> int:
    """The smallest tier that is not shorter, else the last."""
    return next((i for i, tier in enumerate(tiers_ms) if tier >= delay_ms), len(tiers_ms) - 1)


def after_failure(policy: RetryPolicy, attempt: int, failure: Failure, now_ms: int, draw: float) -> Decision:
    """Decide after execution number `attempt` (1 = the first) failed. `draw` is a random number in [0, 1) for jitter."""
    if failure.kind not in RETRIED or attempt >= policy.attempts:
        return GiveUp()
    delay_ms = failure.after_ms
    if delay_ms is None:
        if policy.backoff is None:
            if not policy.tiers_ms:
                return WaitInMemory(now_ms)
            return ToTier(min(attempt - 1, len(policy.tiers_ms) - 1))
        delay_ms = policy.backoff.before_retry_ms(attempt)
    if not policy.tiers_ms or delay_ms < policy.tiers_ms[0]:
        return WaitInMemory(now_ms + delay_ms + int(delay_ms * policy.jitter * draw))
    tier = tier_for(delay_ms, policy.tiers_ms)
    return ToTier(tier, now_ms + delay_ms if delay_ms > policy.tiers_ms[tier] else 0)


def next_hop(tiers_ms: tuple[int, ...], not_before_ms: int, now_ms: int) -> int | None:
    """The tier for a due record whose time has not come yet, or None: run it now."""
    return tier_for(not_before_ms - now_ms, tiers_ms) if not_before_ms > now_ms and tiers_ms else None
