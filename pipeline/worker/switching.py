"""What operators and the flood guard switch: a subscription that is paused, keys that are skipped or released."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.core.flow import FloodGuard
from pipeline.core.parking import Identity
from pipeline.core.unit import Unit
from pipeline.worker.dispatch import Dispatch
from pipeline.worker.parts import EngineParts

LAST_REPLAY = chr(0x10FFFF)
"""Sorts after every replay id: a release covers the replays of its last record too."""


class Switching:
    """Applies the switches of one group to its units and its dispatch."""

    def __init__(self, parts: EngineParts, dispatch: Dispatch, flood: FloodGuard) -> None:
        self._parts = parts
        self._dispatch = dispatch
        self._flood = flood
        self._stalled = False
        self.paused = False

    def follow(self, units: Iterable[Unit]) -> None:
        """The control topic changed, or the flood guard tripped."""
        paused = self._flood.tripped or self._parts.switches.paused(self._parts.group) is not None
        self._dispatch.paused = paused or self._stalled or not self._parts.switches.read
        if paused != self.paused:
            self.paused = paused
            told = "subscription paused" if paused else "subscription resumed"
            self._parts.log.warning(told, group=self._parts.group)
        for unit in units:
            self.apply(unit)

    def stall(self, on: bool) -> None:
        """For a moment: what is done can't be written as fast."""
        self._stalled = on
        self._dispatch.paused = self.paused or on or not self._parts.switches.read

    def apply(self, unit: Unit) -> None:
        switches, place = self._parts.switches, (self._parts.group, self._parts.topics.source, unit.partition)
        for origin, skip in switches.skips(*place).items():
            unit.skip(skip.key, Identity(origin))
        for key, release in switches.releases(*place).items():
            unit.release(key, Identity(release.up_to_origin, LAST_REPLAY))
