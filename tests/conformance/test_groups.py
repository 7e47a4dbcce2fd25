"""Membership: nothing moves behind the listener's back, nothing of the source flows before `add`, nobody stops the world."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pytest

from pipeline.model.cluster import ConsumerPolicy, Position, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, ConfigurationError, FencedError
from tests.conformance.sides import DEADLINE_S, SESSION_MS, MemberInTest, Remote, Side, wait_until

PARTITIONS = 4


def partitions_of(topic: str, count: int = PARTITIONS) -> set[TopicPartition]:
    return {TopicPartition(topic, p) for p in range(count)}


def poll_all(*members: MemberInTest | Remote) -> None:
    for member in members:
        if isinstance(member, MemberInTest):
            member.poll(0.005)
        else:
            member.step()


def until_owned(member: MemberInTest, wanted: set[TopicPartition]) -> None:
    wait_until(lambda: member.listener.owned == wanted, f"to own {sorted(wanted)}", member.poll)


def until_shared(first: MemberInTest, second: MemberInTest | Remote, topic: str) -> set[TopicPartition]:
    """Both own half; returns the second's."""

    def owned() -> set[TopicPartition]:
        return second.listener.owned if isinstance(second, MemberInTest) else second.owned()

    def even() -> bool:
        return len(owned()) == len(first.listener.owned) == PARTITIONS // 2 and not owned() & first.listener.owned

    wait_until(even, "an even share", lambda: poll_all(first, second))
    assert owned() | first.listener.owned == partitions_of(topic)
    return set(owned())


def add_at(member: MemberInTest, offset: int = 0, lane: str | None = None) -> None:
    """Add what is assigned, with its lane's partitions, as soon as it is assigned; let go of the lanes when asked."""

    def assigned(partitions: Sequence[TopicPartition]) -> None:
        member.consumer.add(dict.fromkeys(partitions, offset))
        if lane is not None:
            member.consumer.add({TopicPartition(lane, p): offset for _, p in partitions})

    def revoked(partitions: Sequence[TopicPartition]) -> bool:
        if lane is not None:
            member.consumer.remove([TopicPartition(lane, p) for _, p in partitions])
        return True

    member.listener.on_assigned = assigned
    member.listener.drained = revoked


def test_a_lone_member_gets_everything_and_leaves_cleanly(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    member = grouped.member(topic, group)
    until_owned(member, partitions_of(topic))
    state = grouped.admin.describe_group(group)
    assert (state.state, len(state.members)) == ("stable", 1)
    assert state.protocol == grouped.protocol
    assert state.members[0].member_id == member.consumer.member_id() != ""
    assert set(state.members[0].partitions) == partitions_of(topic)
    member.consumer.close()
    assert grouped.admin.describe_group(group).members == ()
    assert member.listener.heard("revoked") == member.listener.heard("lost") == []


def test_nothing_of_the_source_is_fetched_before_it_is_added(grouped: Side) -> None:
    topic, lane = grouped.topic(PARTITIONS), grouped.topic(PARTITIONS)
    for partition in (*partitions_of(topic), *partitions_of(lane)):
        grouped.fill(partition, 50)
    member = grouped.member(topic)
    until_owned(member, partitions_of(topic))
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        assert member.poll() == []
    member.consumer.add(dict.fromkeys(partitions_of(lane), 0))
    wait_until(lambda: len(member.records) >= 200, "the lanes' records", member.poll)
    assert {m.topic() for m in member.records} == {lane}
    member.consumer.add(dict.fromkeys(partitions_of(topic), 10))
    wait_until(lambda: len(member.records) >= 360, "the source's records", member.poll)
    for partition in partitions_of(topic):
        assert member.offsets(partition) == list(range(10, 50))


def test_adding_inside_the_assignment_works_too(grouped: Side) -> None:
    topic = grouped.topic(PARTITIONS)
    grouped.fill(TopicPartition(topic, 1), 20)
    member = grouped.member(topic)
    add_at(member, 5)
    wait_until(lambda: len(member.records) >= 15, "records", member.poll)
    assert member.offsets(TopicPartition(topic, 1)) == list(range(5, 20))


def test_a_second_member_takes_half_while_the_first_goes_on(grouped: Side) -> None:
    topic, lane, group = grouped.topic(PARTITIONS), grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    add_at(first, 0, lane)
    until_owned(first, partitions_of(topic))
    sent = 0
    second = grouped.member(topic, group)
    add_at(second, 0, lane)
    producer = grouped.producer()

    def trickle() -> None:
        nonlocal sent
        for partition in range(PARTITIONS):
            producer.send(topic, None, b"", partition=partition)
            producer.send(lane, None, b"", partition=partition)
        sent += 1
        poll_all(first, second)

    def even() -> bool:
        return len(second.listener.owned) == len(first.listener.owned) == PARTITIONS // 2

    wait_until(even, "an even share", trickle)
    kept, moved = first.listener.owned, second.listener.owned
    assert kept | moved == partitions_of(topic)
    assert producer.flush(DEADLINE_S) == 0
    lanes_kept = {TopicPartition(lane, p) for _, p in kept}

    def all_there() -> bool:
        return all(len(first.offsets(tp)) >= sent for tp in kept | lanes_kept)

    wait_until(all_there, "all records of what was kept", lambda: poll_all(first, second))
    for partition in kept | lanes_kept:
        assert first.offsets(partition) == list(range(sent)), "each once, in order: what is kept was never interrupted"
    assert set(sum(first.listener.heard("revoked"), ())) == moved
    assert first.listener.heard("lost") == []
    assert len(sum(first.listener.heard("assigned"), ())) == PARTITIONS, "nothing was assigned twice"
    for partition in moved:
        wait_until(lambda tp=partition: len(second.offsets(tp)) >= sent, "the moved", lambda: poll_all(first, second))  # type: ignore[misc]
    after = len(first.records)
    for partition in moved:
        grouped.fill(partition, 5)
    wait_until(
        lambda: all(len(second.offsets(tp)) >= sent + 5 for tp in moved), "more", lambda: poll_all(first, second)
    )
    assert len(first.records) == after, "the first no longer fetches what it gave away"


def test_revocation_waits_until_the_listener_lets_go(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    until_owned(first, partitions_of(topic))
    asked = 0
    second = grouped.member(topic, group)

    def drained(partitions: Sequence[TopicPartition]) -> bool:
        nonlocal asked
        asked += 1
        if asked < 10:
            assert not second.listener.owned & set(partitions)
        return asked >= 10

    first.listener.drained = drained
    until_shared(first, second, topic)
    assert asked == 10
    assert len(set(first.listener.heard("revoked"))) == 1, "always asked for the same partitions"


def test_commits_are_answered_while_partitions_are_drained(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    until_owned(first, partitions_of(topic))
    answers: list[Mapping[TopicPartition, ClusterError | None]] = []
    sent: set[TopicPartition] = set()

    def drained(partitions: Sequence[TopicPartition]) -> bool:
        if not sent:
            sent.update(partitions)
            first.consumer.commit(dict.fromkeys(partitions, Position(7, "async")), answers.append)
        return bool(answers)

    first.listener.drained = drained
    second = grouped.member(topic, group)
    moved = until_shared(first, second, topic)
    assert sent == moved
    assert answers == [dict.fromkeys(moved)]
    assert second.consumer.committed(moved, 10.0) == dict.fromkeys(moved, Position(7, "async"))


def test_a_commit_that_waits_works_inside_a_revocation(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    until_owned(first, partitions_of(topic))
    answers: list[Mapping[TopicPartition, ClusterError | None]] = []

    def drained(partitions: Sequence[TopicPartition]) -> bool:
        answers.append(first.consumer.commit_now(dict.fromkeys(partitions, Position(3)), 5.0))
        return True

    first.listener.drained = drained
    second = grouped.member(topic, group)
    moved = until_shared(first, second, topic)
    assert answers == [dict.fromkeys(moved)]
    assert second.consumer.committed(moved, 10.0) == dict.fromkeys(moved, Position(3))


def test_a_listener_that_never_lets_go_loses_after_the_drain_timeout(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group, drain_timeout_ms=500)
    add_at(first)
    until_owned(first, partitions_of(topic))
    first.listener.drained = lambda partitions: False
    second = grouped.member(topic, group)
    moved = until_shared(first, second, topic)
    assert first.listener.events[-1] == ("lost", tuple(sorted(moved)))
    for partition in moved:
        grouped.fill(partition, 3)
    for _ in range(10):
        assert first.poll() == []


def test_when_a_member_leaves_its_partitions_move_at_once(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first, second = grouped.member(topic, group), grouped.member(topic, group)
    until_shared(first, second, topic)
    second.consumer.close()
    began = time.monotonic()
    until_owned(first, partitions_of(topic))
    assert time.monotonic() - began < 5.0
    assert first.listener.heard("lost") == []


def test_a_killed_members_partitions_move_after_its_session(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    until_owned(first, partitions_of(topic))
    remote = grouped.remote(topic, group)
    until_shared(first, remote, topic)
    remote.kill()
    began = time.monotonic()
    until_owned(first, partitions_of(topic))
    took_s = time.monotonic() - began
    assert took_s < 15.0, "the issue's bound"
    if grouped.protocol == "classic":
        assert SESSION_MS / 1000 * 0.3 < took_s < SESSION_MS / 1000 + 3.0


def test_a_zombies_commit_is_fenced_and_it_hears_of_its_loss(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    until_owned(first, partitions_of(topic))
    remote = grouped.remote(topic, group)
    taken = until_shared(first, remote, topic)
    partition = min(taken)
    remote.freeze()
    until_owned(first, partitions_of(topic))
    assert first.consumer.commit_now({partition: Position(50, "the new owner")}, 10.0) == {partition: None}
    remote.thaw()
    assert remote.commit(partition, 2) == FencedError.__name__
    assert first.consumer.committed([partition], 10.0) == {partition: Position(50, "the new owner")}
    wait_until(remote.lost, "the zombie to hear of its loss", lambda: poll_all(first, remote))
    until_shared(first, remote, topic)


def test_a_rebalance_with_nothing_added_yet(grouped: Side) -> None:
    """A rebuild is under way: lanes are fetched, the source is not, and partitions are already wanted back."""
    topic, lane, group = grouped.topic(PARTITIONS), grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    for partition in partitions_of(lane):
        grouped.fill(partition, 3)
    first = grouped.member(topic, group)
    first.listener.on_assigned = lambda partitions: first.consumer.add(
        {TopicPartition(lane, p): 0 for _, p in partitions}
    )
    until_owned(first, partitions_of(topic))
    second = grouped.member(topic, group)
    moved = until_shared(first, second, topic)
    gone = {TopicPartition(lane, p) for _, p in moved}
    first.consumer.remove(gone)
    first.records.clear()
    for partition in partitions_of(lane):
        grouped.fill(partition, 3)
    kept = partitions_of(lane) - gone
    wait_until(lambda: all(first.offsets(tp)[-1:] == [5] for tp in kept), "lanes kept", lambda: poll_all(first, second))
    assert all(first.offsets(tp) == [] for tp in gone)


def test_a_topic_that_comes_later_is_noticed(grouped: Side) -> None:
    topic = f"later-{time.time_ns()}"
    member = grouped.member(topic)
    if grouped.protocol == "classic":  # a KIP-848 coordinator does not complain
        wait_until(lambda: bool(member.listener.faults), "a fault", member.poll)
        assert {fault.kind for fault in member.listener.faults} == {"unknown_topic"}
        assert {fault.partition for fault in member.listener.faults} == {TopicPartition(topic, -1)}
    else:
        member.poll()
    grouped.admin.create_topics([TopicSpec(topic, 2, 1)])
    until_owned(member, partitions_of(topic, 2))


def test_partitions_that_are_added_are_assigned(grouped: Side) -> None:
    topic = grouped.topic(2)
    member = grouped.member(topic)
    until_owned(member, partitions_of(topic, 2))
    grouped.admin.add_partitions(topic, 3)
    until_owned(member, partitions_of(topic, 3))
    assert member.listener.heard("revoked") == []


def test_a_static_member_comes_back_to_its_partitions(grouped: Side) -> None:
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    other = grouped.member(topic, group, session_timeout_ms=20_000)
    static = grouped.member(topic, group, instance_id="one", session_timeout_ms=20_000)
    mine = until_shared(other, static, topic)
    static.consumer.close()
    again = grouped.member(topic, group, instance_id="one", session_timeout_ms=20_000)
    wait_until(lambda: again.listener.owned == mine, "the same partitions", lambda: poll_all(other, again))
    assert other.listener.owned == partitions_of(topic) - mine


def test_an_instance_id_used_twice_ends_one_of_the_two(grouped: Side) -> None:
    """Classic: the newcomer takes over. KIP-848: the newcomer is refused while the other lives."""
    topic, group = grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group, instance_id="one")
    until_owned(first, partitions_of(topic))
    second = grouped.member(topic, group, instance_id="one")
    with pytest.raises(FencedError, match="instance_id"):
        wait_until(lambda: False, "one to be fenced", lambda: poll_all(first, second))
    survivor = first if grouped.protocol == "consumer" else second
    until_owned(survivor, partitions_of(topic))


def test_an_unknown_protocol_is_refused(side: Side) -> None:
    with pytest.raises(ConfigurationError, match="protocol='modern'"):
        side.cluster.consumer(ConsumerPolicy("g", protocol="modern"))


def test_lanes_removed_while_draining_do_not_end_the_revocation(grouped: Side) -> None:
    """Also when the lanes go at once and the source's work takes longer, nobody else gets the partitions before."""
    topic, lane, group = grouped.topic(PARTITIONS), grouped.topic(PARTITIONS), f"g-{time.time_ns()}"
    first = grouped.member(topic, group)
    add_at(first, 0, lane)
    until_owned(first, partitions_of(topic))
    second = grouped.remote(topic, group)
    release_at = 0.0
    seen_early: set[TopicPartition] = set()

    def drained(partitions: Sequence[TopicPartition]) -> bool:
        nonlocal release_at
        if not release_at:
            release_at = time.monotonic() + 2.5
            first.consumer.remove([TopicPartition(lane, p) for _, p in partitions])
        seen_early.update(second.owned() & set(partitions))
        return time.monotonic() >= release_at

    first.listener.drained = drained
    moved = until_shared(first, second, topic)
    assert release_at > 0
    assert seen_early == set()
    for _, partition in moved:
        grouped.fill(TopicPartition(lane, partition), 1)
    for _ in range(10):
        assert first.poll() == []
