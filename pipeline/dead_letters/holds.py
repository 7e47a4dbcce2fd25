"""Keys of a group that are held, as lanes and commits tell, and the records by which a tool lets them go.

    open ──> taken up by the owner (its commit says so) ──> letters are sent back ──> close

See "Held keys" in docs/design.md. Every step may be taken again: what is found decides what is left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from pipeline.dead_letters.desk import Desk
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.collect import Collector, find_layouts
from pipeline.inspect.explain import PartitionView, unresolved
from pipeline.inspect.records import LaneRecord, is_settled
from pipeline.model.cluster import Message
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.headers import CLOSES, HELD, HOLD, OPENS, DeliveryHeaders, encode, headers_in
from pipeline.model.keys import key_text
from pipeline.model.topics import CONTROL_TOPIC
from pipeline.replay.joining import members_of

RELEASE_HOPS = 1_000
"""More than an owner adds by writing its copy anew while the operator's is on its way: the operator's counts (rule c)."""
NO_OWNERS_EPOCH = 1 << 62
"""Above every owner's: fences are against owners that were replaced (rule g)."""
LOOK_EVERY_S = 0.2
TAKEN_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Hold:
    """A held record. `release`: the id under which its key is being released; empty: not yet. `paused`: by whom the group is."""

    lane: str
    partition: int
    key: bytes | None
    copy: LaneRecord
    release: str = ""
    taken_up: bool = False
    paused: str | None = None

    @property
    def place(self) -> tuple[int, str | None]:
        """Partition and key, as the index of dead letters has them."""
        return self.partition, key_text(self.key)

    @property
    def identity(self) -> tuple[str, int, tuple[int, str]]:
        return self.lane, self.partition, self.copy.identity

    @property
    def origin(self) -> int:
        return self.copy.origin


def find_holds(desk: Desk, group: str) -> list[Hold]:
    """All of the group, by lane, partition and origin."""
    admin = desk.cluster.admin()
    try:
        entries = find_layouts(admin, group)
        workers = bool(members_of(admin, group))
    finally:
        admin.close()
    found: list[Hold] = []
    for entry in entries:
        collector = Collector(desk.cluster, entry, desk.topics.prefix + CONTROL_TOPIC)
        try:
            views = collector.copies((entry.topics.replay,), range(collector.partitions()), _says_hold)
        finally:
            collector.close()
        found += [hold for view in views for hold in _holds(view, workers)]
    return sorted(found, key=lambda hold: hold.identity)


def _says_hold(message: Message) -> bool:
    """All copies of a hold lie in the replay lane with this header, among any number of others; most groups hold nothing."""
    return any(name == HOLD for name, _ in headers_in(message) or ())


def _holds(view: PartitionView, workers: bool) -> Iterable[Hold]:
    lane, waiting = view.topics.replay, set()
    for record in view.lanes:
        held = record.topic == lane and record.delivery is not None and record.delivery.hold == HELD
        if held and not is_settled(view.progress.get(lane), record.offset):
            waiting.add(record.identity)
    for copy in unresolved(view).values():
        hold = copy.delivery.hold if copy.delivery is not None else ""
        if copy.topic != lane or not hold.startswith((HELD, OPENS)):
            continue
        # Without a worker nobody writes dead letters, and the next one reads the copy before it does anything.
        taken_up = hold != HELD and (copy.identity not in waiting or not workers)
        release = hold.removeprefix(OPENS) if hold != HELD else ""
        yield Hold(lane, view.partition, copy.key, copy, release, taken_up, view.paused)


def open_holds(
    desk: Desk, group: str, holds: Sequence[Hold], release: str, alive: Callable[[], bool] = lambda: True,
    deadline_s: float = TAKEN_UP_S,
) -> list[Hold]:  # fmt: skip
    """Start releasing: returns when the owners have taken it up, with the holds as they are then. From here their keys' records wait.

    Raises `ClusterUnavailable` when that takes too long; doing it again goes on.
    """
    wanted, until = {hold.identity for hold in holds}, time.monotonic() + deadline_s
    current = [hold for hold in find_holds(desk, group) if hold.identity in wanted]
    while True:
        fresh = [hold for hold in current if not hold.release]
        _append(desk, [(hold, _opening(hold, release)) for hold in fresh])
        if not fresh and all(hold.taken_up for hold in current):
            return current
        while time.monotonic() < until and alive():
            time.sleep(LOOK_EVERY_S)
            current = [hold for hold in find_holds(desk, group) if hold.identity in wanted]
            if all(hold.taken_up or not hold.release for hold in current):
                break
        else:
            late = next((hold for hold in current if not hold.taken_up), holds[0])
            why = f"the group is paused by {late.paused}" if late.paused else "its worker is late"
            raise ClusterUnavailable(
                f"the release of key {key_text(late.key)} in {late.lane} partition {late.partition} was not taken up in {deadline_s:g} s "
                f"({why}): run the same command again, it goes on"
            )


def close_holds(desk: Desk, holds: Collection[Hold]) -> None:
    """Everything was sent back: the owners let the keys go when they have read it."""
    marks = {(hold.lane, hold.partition, hold.key, hold.release): hold for hold in holds}
    _append(desk, [(hold, _mark(hold)) for hold in marks.values()])


def _opening(hold: Hold, release: str) -> DeliveryHeaders:
    before = hold.copy.delivery
    assert before is not None, "it was found by its headers"
    return DeliveryHeaders(
        before.attempt, before.hop + RELEASE_HOPS, NO_OWNERS_EPOCH, before.origin_topic, before.origin_partition, before.origin_offset,
        before.origin_timestamp_ms, before.group, replay_id=before.replay_id, replay_count=before.replay_count, hold=OPENS + release,
    )  # fmt: skip


def _mark(hold: Hold) -> DeliveryHeaders:
    before = hold.copy.delivery
    assert before is not None, "it was found by its headers"
    return DeliveryHeaders(
        0, 0, 0, before.origin_topic, before.origin_partition, before.origin_offset, before.origin_timestamp_ms, before.group,
        replay_id=f"close-{hold.release}", hold=CLOSES + hold.release,
    )  # fmt: skip


def _append(desk: Desk, records: Sequence[tuple[Hold, DeliveryHeaders]]) -> None:
    for lane in sorted({hold.lane for hold, _ in records}):
        append(
            desk.cluster,
            lane,
            [
                Entry(hold.key, None, encode([], headers), hold.partition)
                for hold, headers in records
                if hold.lane == lane
            ],
        )
