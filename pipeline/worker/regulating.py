"""Back-pressure: which partitions are paused, and why. Every bound has hysteresis."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pipeline.core.delivery import SOURCE
from pipeline.core.flow import Gate
from pipeline.core.unit import Lane, Unit
from pipeline.model.cluster import TopicPartition
from pipeline.model.policies import FlowPolicy
from pipeline.worker.committing import Committer
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.sending import Sender

METADATA_FULL = 0.75
"""Part of the commit metadata's size at which a partition takes no new work."""


class Regulator:
    """Pauses a source partition whose keys queue up or wait for their next attempt, whose commit metadata is nearly full or whose writes
    don't get through, and a lane whose look-ahead is full, or all lanes of a partition whose records queue up or wait so. With
    exactly_once also a lane or source whose first open record lies far back. All while the subscription is paused or a schema is awaited.
    """

    def __init__(self, flow: FlowPolicy, committer: Committer, sender: Sender, span_max: int = 0) -> None:
        """`span_max`: offsets of a lane from the first that is open to the last that was fetched (0: no bound but the commit's text)."""
        self._span_max = span_max
        self._flow = flow
        self._committer = committer
        self._sender = sender
        self._gates: dict[Unit, Gate] = {}
        self._lane_gates: dict[Unit, Gate] = {}
        # Made once: every step asks for each lane of each unit.
        self._places: dict[Unit, tuple[TopicPartition, ...]] = {}
        self._held: set[TopicPartition] = set()

    def add(self, unit: Unit, owned: int) -> None:
        """A new unit, one of `owned`: its share of the buffer is what may wait in memory for it."""
        share = max(100, 2 * self._flow.buffered // max(1, owned))
        # Apart from the source's: the retries of other keys go on while one key's source records queue up.
        self._gates[unit], self._lane_gates[unit] = Gate(share), Gate(share)
        self._places[unit] = tuple(TopicPartition(lane.spec.topic, unit.partition) for lane in unit.lanes)

    def forget(self, unit: Unit) -> None:
        self._gates.pop(unit, None)
        self._lane_gates.pop(unit, None)
        self._places.pop(unit, None)
        self._held = {tp for tp in self._held if tp.partition != unit.partition}

    def regulate(self, units: Iterable[Unit], fetcher: Fetcher, paused: bool, full_of_waits: bool) -> None:
        hold: list[TopicPartition] = []
        free: list[TopicPartition] = []
        stop_all = paused or full_of_waits
        for unit in units:
            # What the lanes wait for comes in any case: it was all in memory once, and they would wait for good.
            crowded = self._crowded(unit) and not unit.lanes[SOURCE].tracker.restoring
            stop_source = stop_all or crowded
            stop_lanes = self._lane_gates[unit].update(unit.waiting.of_lanes) or stop_all or _held_back(unit)
            for index, tp in enumerate(self._places[unit]):
                held = tp in self._held
                if index == SOURCE:
                    stop = stop_source
                else:
                    bound = self._flow.look_ahead // 2 if held else self._flow.look_ahead
                    lane = unit.lanes[index]
                    full = len(lane.look_ahead) >= max(1, bound)
                    stop = stop_lanes or full or (self._spread(lane) and not _ends_further_up(unit, index))
                if stop != held:
                    (hold if stop else free).append(tp)
        if hold:
            self._held.update(hold)
            fetcher.request(partial(fetcher.pause, tuple(hold)))
        if free:
            self._held.difference_update(free)
            fetcher.request(partial(fetcher.resume, tuple(free)))

    def _spread(self, lane: Lane) -> bool:
        """A transaction's text could soon not say what is done in it. What fills its holes is in memory, but for what is restored."""
        tracker, most = lane.tracker, self._span_max
        return most > 0 and tracker.next_offset - tracker.position > most and not tracker.restoring

    def _crowded(self, unit: Unit) -> bool:
        return bool(
            self._gates[unit].update(unit.waiting.count - unit.waiting.of_lanes)
            or self._committer.loads.get(unit, 0.0) >= METADATA_FULL
            or self._sender.troubled(unit)
            or self._spread(unit.lanes[SOURCE])
            or _held_back(unit)
        )


def _held_back(unit: Unit) -> bool:
    return unit.care is not None and unit.care.full


def _ends_further_up(unit: Unit, index: int) -> bool:
    """Keys were held before the switch to exactly_once: what ends that comes in this lane, behind any number of records."""
    return index == unit.replay_lane and bool(unit.holds.releasing or unit.holds.copies)
