"""What became of the records of a redrive: done, dead again, or still on their way. Told from lanes, commits and dead letters."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.query import Letter, letters_at
from pipeline.dead_letters.redrive_plan import Origin
from pipeline.inspect.collect import Collector, find_layouts
from pipeline.inspect.explain import PartitionView, unresolved
from pipeline.inspect.records import LaneRecord, is_settled
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.headers import HeaderError, headers_in, standing_of
from pipeline.model.topics import CONTROL_TOPIC
from pipeline.replay.joining import members_of
from pipeline.replay.plan import ReplayPlan
from pipeline.topology.naming import Layout

LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of a canary's letters: how many are done, which died again, and where the others are ("queued", or a tier's name)."""

    done: int
    failed: tuple[Letter, ...]
    waiting: tuple[str, ...]
    not_sent: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        return not self.waiting

    @property
    def good(self) -> bool:
        return not self.failed and not self.waiting and not self.not_sent


def members(desk: Desk, group: str) -> int:
    """How many workers the group has: without any, nothing that is sent gets done."""
    admin = desk.cluster.admin()
    try:
        return len(members_of(admin, group))
    finally:
        admin.close()


class Watch:
    """Looks at what becomes of these letters of a plan. Each look reads what came into the lanes since the one before."""

    def __init__(self, desk: Desk, plan: ReplayPlan, sent: Sequence[Origin]) -> None:
        self._desk, self._plan, self._sent = desk, plan, sent
        self._read: dict[TopicPartition, int] = {}
        self._copies: dict[tuple[str, int], list[LaneRecord]] = defaultdict(list)
        """Of the plan, by source topic and partition."""

    def look(self) -> Outcomes:
        """Now. What is in a lane is on its way; what is not, and was committed, is done unless it is among the dead letters."""
        desk, plan = self._desk, self._plan
        admin = desk.cluster.admin()
        try:
            layouts = {entry.topics.source: entry for entry in find_layouts(admin, plan.target.group)}
        finally:
            admin.close()
        desk.refresh()
        places, refused = written(desk, plan.plan_id, self._sent)
        partitions = {place[0] for place in places.values()}
        views = {source: self._views(layouts[source], partitions) for source in plan.target.topics}
        desk.refresh()  # after the lanes: a copy that left them for the dead letters is there by now
        failed, waiting, done = [], [], 0
        for letter in self._sent:
            place = places.get(letter.number)
            if place is None:
                continue
            again = _dead_again(desk, plan.plan_id, place[0], letter)
            if again is not None:
                failed.append(again)
                continue
            view = views[letter.origin_topic or ""].get(place[0])
            where = _where(view, letter, plan.plan_id, place[1], layouts[letter.origin_topic or ""])
            if where:
                waiting.append(where)
            else:
                done += 1
        return Outcomes(done, tuple(failed), tuple(waiting), tuple(refused))

    def _views(self, entry: Layout, partitions: set[int]) -> dict[int, PartitionView]:
        topics = entry.topics
        collector = Collector(self._desk.cluster, entry, self._desk.topics.prefix + CONTROL_TOPIC)
        try:
            views = collector.copies(topics.lanes, sorted(partitions), self._is_ours, self._read)
        finally:
            collector.close()
        for view in views:
            self._copies[topics.source, view.partition] += view.lanes
        return {view.partition: replace(view, lanes=self._copies[topics.source, view.partition]) for view in views}

    def _is_ours(self, message: Message) -> bool:
        try:
            return standing_of(headers_in(message)).replay_id == self._plan.plan_id
        except HeaderError:
            return False


def written(desk: Desk, plan_id: str, sent: Sequence[Origin]) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """(letter -> place of its copy in the replay lane, outcomes of those that were not sent)."""
    found: dict[int, tuple[int, int]] = {}
    refused: list[str] = []
    for letter in sent:
        row = desk.store.db.execute(
            "SELECT outcome, target_partition, target_offset FROM results WHERE letter = ? AND plan = ? "
            "ORDER BY number DESC LIMIT 1",
            (letter.number, plan_id),
        ).fetchone()
        if row is not None and row[0] == "written":
            found[letter.number] = (row[1], row[2])
        else:
            refused.append("no result" if row is None else str(row[0]))
    return found, refused


def _dead_again(desk: Desk, plan_id: str, partition: int, letter: Origin) -> Letter | None:
    row = desk.store.db.execute(
        "SELECT id FROM letters WHERE replay_id = ? AND origin_partition = ? AND origin_offset IS ? AND origin_topic IS ? "
        "ORDER BY id DESC LIMIT 1",
        (plan_id, partition, letter.origin_offset, letter.origin_topic),
    ).fetchone()
    return None if row is None else letters_at(desk.store.db, row)[row[0]]


def _where(view: PartitionView | None, letter: Origin, plan_id: str, lane_offset: int, entry: Layout) -> str:
    """Where it is on its way; empty: nowhere any more."""
    if view is None:
        return "queued"
    copy = unresolved(view).get((letter.origin_offset or 0, plan_id))
    if copy is not None:
        return "queued" if copy.topic == entry.topics.replay else copy.topic
    return "" if is_settled(view.progress.get(entry.topics.replay), lane_offset) else "queued"


def wait_for_outcome(
    desk: Desk,
    plan: ReplayPlan,
    sent: Sequence[Origin],
    deadline_s: float,
    told: Callable[[Outcomes], None] = lambda _found: None,
    alive: Callable[[], bool] = lambda: True,
) -> Outcomes:
    """Until the outcome of all is known, one failed, or the deadline is over."""
    until, watch = time.monotonic() + deadline_s, Watch(desk, plan, sent)
    while True:
        found = watch.look()
        told(found)
        left_s = until - time.monotonic()
        if found.known or found.failed or left_s <= 0 or not alive():
            return found
        time.sleep(min(LOOK_EVERY_S, max(0.0, left_s)))
