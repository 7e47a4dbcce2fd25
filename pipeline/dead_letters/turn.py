"""One redrive (or release) of a dead-letter topic at a time, whatever machine it runs on.

    locked on this machine -> joined -> nobody else is in the group -> announced -> at work, for as long as it is the member that joined

It is announced by the group's committed offset, whose text names the member at work.
Each plan has a group of its own, so two redrives of the same letters would not meet there: this group is the topic's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

from pipeline.dead_letters.desk import Desk
from pipeline.model.cluster import ConsumerPolicy, GroupConsumer, GroupMember, Position, TopicPartition
from pipeline.model.errors import ClusterUnavailable, PipelineError
from pipeline.replay.joining import members_of
from pipeline.replay.presence import Bystander
from pipeline.replay.running import Surroundings

LOCK_WAIT_S = 2.0
JOIN_S, ASK_S, LOOK_EVERY_S = 30.0, 5.0, 0.05
CLIENT = "pipeline-redrive"
SESSION_MS = 6_000
"""The shortest that brokers allow by default: so long one that was killed elsewhere keeps others out."""


class AnotherRedrive(PipelineError):
    """Somebody else sends these dead letters back just now."""


@contextlib.contextmanager
def turn(desk: Desk, alive: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """While it lasts nobody else has it. Gives `alive`, which also says no when a session ended and another may have begun.

    Raises `AnotherRedrive` naming who is at work, `IndexBusy` when that is on this machine.
    """
    with desk.store.locked(LOCK_WAIT_S, "redrive"):
        client = f"{CLIENT}-{_mark(desk)}"
        policy = ConsumerPolicy(group=group_of(desk), client_id=client, session_timeout_ms=SESSION_MS)
        consumer = desk.cluster.consumer(policy)
        try:
            bystander = Bystander()
            consumer.subscribe(desk.topics.dead_letters, bystander)
            mine = _joined(desk, consumer, policy, bystander)

            def ours() -> bool:
                consumer.poll(1, 0.0)
                return consumer.member_id() == mine and alive()

            yield ours
        finally:
            consumer.close()


def group_of(desk: Desk) -> str:
    """Among those of the replays, so that the same rights do."""
    topics = desk.topics
    return Surroundings(desk.cluster, topics.prefix).group(f"redrive.{topics.dead_letters}")


def _mark(desk: Desk) -> str:
    """The same for all that lock the same file: others with this mark are dead when the lock is ours, and need no waiting for."""
    if desk.store.path is None:
        return secrets.token_hex(6)
    file = desk.store.path.with_name(f"{desk.store.path.name}.redrive")
    known = file.read_text(encoding="ascii", errors="replace").strip()
    if not known:
        known = secrets.token_hex(6)
        file.write_text(known, encoding="ascii")
    return known


def _joined(desk: Desk, consumer: GroupConsumer, policy: ConsumerPolicy, bystander: Bystander) -> str:
    """The id of this member once the group says that it is in, and alone. Of several that begin at once the lowest id waits for the
    others to leave, which they do as soon as they see it; behind one that is announced as at work nobody waits."""
    admin, until = desk.cluster.admin(), time.monotonic() + JOIN_S
    try:
        while time.monotonic() < until:
            consumer.poll(1, LOOK_EVERY_S)
            bystander.check()
            mine, members = consumer.member_id(), members_of(admin, policy.group)
            others = [each for each in members if each.member_id != mine and each.client_id != policy.client_id]
            if not mine or all(each.member_id != mine for each in members):
                continue
            if not others:
                if _announced(desk, consumer, mine):
                    return mine
            elif min(each.member_id for each in others) < mine or _at_work(desk, consumer, others):
                raise AnotherRedrive(_sentence(desk, others, policy))
    finally:
        admin.close()
    raise ClusterUnavailable(
        f"group {policy.group} could not be joined in {JOIN_S:g} s, so nothing was sent: try again"
    )


def _place(desk: Desk) -> TopicPartition:
    return TopicPartition(desk.topics.dead_letters, 0)


def _announced(desk: Desk, consumer: GroupConsumer, member_id: str) -> bool:
    """Refused while somebody joins or leaves."""
    place = _place(desk)
    return consumer.commit_now({place: Position(0, member_id)}, ASK_S)[place] is None


def _at_work(desk: Desk, consumer: GroupConsumer, others: Sequence[GroupMember]) -> bool:
    place = _place(desk)
    with contextlib.suppress(ClusterUnavailable):
        position = consumer.committed([place], ASK_S)[place]
        return position is not None and position.metadata in {each.member_id for each in others}
    return False


def _sentence(desk: Desk, others: Sequence[GroupMember], policy: ConsumerPolicy) -> str:
    names = ", ".join(f"{each.client_id} on {each.host}" for each in others[:3])
    return (
        f"dead letters of {desk.topics.dead_letters} are being sent back by {names}, so nothing was sent: wait for it, or end it; one "
        f"that was killed is taken for alive until {policy.session_timeout_ms / 1_000:g} s after its last sign of life"
    )
