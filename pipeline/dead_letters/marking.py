"""Purge and cancel: dead letters that nobody wants back. A purged one leaves an audited tombstone; cancelled ones stay readable.

What is purged is deleted for good only where Kafka can: from the beginning of a partition up to the first letter that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dead_letters.acting import Actor, Done, begin, record, still
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.redrive_plan import strangers
from pipeline.dead_letters.states import id_of, number_of, position_of
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ClusterError

NOBODYS = "not written by a worker, so not a dead letter for certain (retention deletes it, or kafka-delete-records)"
PURGEABLE = ("open", "redriven", "edited", "cancelled", "converted")


def purge(desk: Desk, numbers: Sequence[int], actor: Actor, now_ms: int) -> Done:
    """Mark as purged, then delete what stands at the beginning of its partition. `details["deleted"]`: offsets deleted.

    What no worker wrote is left out: it may be anything, in a topic that was named by mistake.
    """
    chosen, left = still(desk, numbers, PURGEABLE)
    unknown = strangers(desk, chosen)
    if unknown:
        chosen = [number for number in chosen if number not in unknown]
        left[NOBODYS] = len(unknown)
    if not chosen:
        return Done("", "purge", {"purged": 0}, left)
    action_id = begin(desk, actor, "purge", chosen, now_ms)
    record(desk, actor, action_id, "purge", dict.fromkeys(chosen, ("purged", -1, -1)), now_ms)
    desk.refresh(verify=True)
    before = purged_heads(desk)
    deleted, problem = 0, ""
    if before:
        admin = desk.cluster.admin()
        try:
            beginnings = admin.beginning_offsets(list(before))
            admin.delete_records(before)
            deleted = sum(max(0, offset - beginnings[place]) for place, offset in before.items())
        except ClusterError as error:
            problem = f"{len(chosen)} dead letters are marked, but are in the topic still; the next purge deletes them too: {error}"
        finally:
            admin.close()
        desk.refresh()
    return Done(action_id, "purge", {"purged": len(chosen)}, left, {"deleted": deleted, "problem": problem})


def purged_heads(desk: Desk) -> dict[TopicPartition, int]:
    """By partition, the first offset that must stay, where everything before it is purged.

    One look at one state of the index: another command may be building it anew.
    """
    with desk.store.reading():
        return _purged_heads(desk)


def _purged_heads(desk: Desk) -> dict[TopicPartition, int]:
    topic, db = desk.topics.dead_letters, desk.store.db
    found: dict[TopicPartition, int] = {}
    rows = db.execute("SELECT partition, beginning, next FROM progress WHERE topic = ?", (topic,)).fetchall()
    for partition, beginning, following in rows:
        kept = db.execute(
            "SELECT id FROM letters WHERE id >= ? AND id < ? AND state <> ? ORDER BY id LIMIT 1",
            (id_of(partition, beginning), id_of(partition, following), number_of("purged")),
        ).fetchone()
        first = following if kept is None else position_of(kept[0])[1]
        purged = db.execute(
            "SELECT 1 FROM letters WHERE id >= ? AND id < ? LIMIT 1",
            (id_of(partition, beginning), id_of(partition, first)),
        ).fetchone()
        if purged is not None and first > beginning:
            found[TopicPartition(topic, partition)] = first
    return found


def cancel(desk: Desk, numbers: Sequence[int], actor: Actor, now_ms: int) -> Done:
    """Mark as given up: no redrive of "everything open" takes them any more."""
    chosen, left = still(desk, numbers, ("open",))
    if not chosen:
        return Done("", "cancel", {"cancelled": 0}, left)
    action_id = begin(desk, actor, "cancel", chosen, now_ms)
    record(desk, actor, action_id, "cancel", dict.fromkeys(chosen, ("cancelled", -1, -1)), now_ms)
    desk.refresh()
    return Done(action_id, "cancel", {"cancelled": len(chosen)}, left)
