"""OffsetCommits, one after the other, each with every partition's own answer.

Why a thread: the synchronous form is the only one whose answer can arrive while `poll` is inside a rebalance callback
(a nested poll aborts the process), and that is when a draining member needs it.
It must pass for the polling thread, because confluent-kafka lets the calls of different threads wait for each other: a
poll loop would starve the commit (see `_pass_for`).
Why a read-back: when any partition of a request is refused, confluent-kafka reports that error for all of them although
the others were stored. Asking the coordinator what it holds tells them apart.
Why the member id: a commit carries the membership of the moment it is sent, not of the moment it was asked for. A member that is
removed in between (a process that was stopped and wakes) has no id then, and a group that has run empty takes that from anybody.
Why `let_go`: under KIP-848 a client keeps its id for as long as it lives, also when it joins again, so the id can't tell the two
memberships apart. It joins again once it has let go of what it lost: by then no commit of before may be left to send.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, cimpl
from confluent_kafka import TopicPartition as Assigned

from pipeline.kafka.errors import FENCED_CODES, cluster_error
from pipeline.model.cluster import CommitCallback, Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError

METADATA_MAX_CHARACTERS = 4_095
READ_BACK_TIMEOUT_S = 5.0
_WAITING_MAX = 64

Answer = dict[TopicPartition, ClusterError | None]


@dataclass(slots=True)
class _Request:
    positions: dict[TopicPartition, Position]
    thread_id: int
    member_id: str | None
    answered: Callable[[Answer], None]
    refused: Answer = field(default_factory=dict)

    def answer(self, answer: Answer) -> None:
        self.answered({**self.refused, **answer})


class Committer:
    """Sends commits in its own thread; answers wait in a queue until the owner serves them in its thread.

    `member_id`: the member that partitions were last assigned to, None before that. Nothing is sent as another one.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.member_id: str | None = None
        self._requests: queue.Queue[_Request | None] = queue.Queue(_WAITING_MAX)
        self._answers: deque[tuple[CommitCallback, Answer]] = deque()
        self._arrived = threading.Event()
        self._open: dict[int, _Request] = {}
        self._sending: _Request | None = None
        self._lock = threading.Lock()
        self._sent = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        """`done` is called by a later `serve`, exactly once."""

        def answered(answer: Answer) -> None:
            self._answers.append((done, answer))
            self._arrived.set()

        self._submit(positions, answered)

    def commit_now(self, positions: Mapping[TopicPartition, Position], timeout_s: float) -> Answer:
        ready = threading.Event()
        result: Answer = {}

        def answered(answer: Answer) -> None:
            result.update(answer)
            ready.set()

        self._submit(positions, answered)
        if not ready.wait(timeout_s):
            unknown = ClusterUnavailable(f"no answer to the commit within {timeout_s} s; it may still be stored")
            return dict.fromkeys(positions, unknown)
        return result

    def serve(self) -> None:
        """Call the callbacks of the commits that were answered."""
        self._arrived.clear()
        while self._answers:
            done, answer = self._answers.popleft()
            done(answer)

    def wait(self, timeout_s: float) -> None:
        """Until an answer is there to serve, or the time is over."""
        self._arrived.wait(timeout_s)

    def let_go(self, partitions: Collection[TopicPartition], timeout_s: float) -> bool:
        """These are not ours any more: what waits to be sent for them is refused, what is under way is waited for.

        False: that one is not answered within the time, and may still be stored.
        """
        gone = set(partitions)
        with self._lock:
            under_way = self._sending
            waiting = [each for each in self._open.values() if each is not under_way and gone & each.positions.keys()]
            for request in waiting:  # in this moment: the thread may be about to send one
                del self._open[id(request)]
        for request in waiting:
            fenced = FencedError(f"{names(gone & request.positions.keys())} went before the commit was sent")
            request.answer(dict.fromkeys(request.positions, fenced))
        if under_way is None or not gone & under_way.positions.keys():
            return True
        with self._sent:
            return self._sent.wait_for(lambda: self._sending is not under_way, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Waits for what is under way; answers still missing after that are given as unknown."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._requests.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        gone = ClusterUnavailable("the consumer was closed before the commit was answered; it may still be stored")
        for request in list(self._open.values()):
            self._finish(request, dict.fromkeys(request.positions, gone))

    def _submit(self, positions: Mapping[TopicPartition, Position], answered: Callable[[Answer], None]) -> None:
        request = _Request({}, threading.get_ident(), self.member_id, answered)
        for partition, position in positions.items():
            if error := _not_committable(partition, position):
                request.refused[partition] = error
            else:
                request.positions[partition] = position
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kafka-commits", daemon=True)
            self._thread.start()
        self._open[id(request)] = request
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            full = ClusterUnavailable(
                f"{_WAITING_MAX} commits are waiting already: the group's coordinator does not answer"
            )
            self._finish(request, dict.fromkeys(request.positions, full))

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            _pass_for(request.thread_id)
            with self._lock:
                if id(request) not in self._open:
                    continue  # let go, or given up
                self._sending = request
            self._finish(request, self._send(request.positions, request.member_id) if request.positions else {})
            with self._sent:
                self._sending = None
                self._sent.notify_all()

    def _finish(self, request: _Request, answer: Answer) -> None:
        """The first answer counts: one that comes after `close` gave up changes nothing."""
        with self._lock:
            if self._open.pop(id(request), None) is None:
                return
        request.answer(answer)

    def _send(self, positions: dict[TopicPartition, Position], member_id: str | None) -> Answer:
        offsets = [Assigned(t, p, position.offset, position.metadata) for (t, p), position in positions.items()]
        try:
            if member_id is not None and self._consumer.memberid() != member_id:
                gone = FencedError(f"member {member_id!r} was removed from the group before its commit was sent")
                return dict.fromkeys(positions, gone)
            stored = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as exception:
            error = exception.args[0]
            return self._explain(positions, error)
        except RuntimeError as error:  # closed under us
            return dict.fromkeys(positions, ClusterUnavailable(f"the commit was not answered: {error}"))
        return {
            TopicPartition(each.topic, each.partition): None if each.error is None else _refused(each.error, each)
            for each in stored
        }

    def _explain(self, positions: dict[TopicPartition, Position], error: KafkaError) -> Answer:
        """Partitions of a request with an error that were stored all the same: the coordinator holds just that."""
        answer: Answer = {tp: cluster_error(error, f"the commit of {tp.topic}[{tp.partition}]") for tp in positions}
        if error.code() in FENCED_CODES or len(positions) == 1:
            return answer
        try:
            held = self._consumer.committed([Assigned(t, p) for t, p in positions], READ_BACK_TIMEOUT_S)
        except (KafkaException, RuntimeError):
            return answer
        for each in held:
            tp = TopicPartition(each.topic, each.partition)
            if each.error is None and Position(each.offset, each.metadata or "") == positions[tp]:
                answer[tp] = None
        return answer


def _pass_for(thread_id: int) -> None:
    """Let this thread's calls count as those of the thread that owns the consumer.

    confluent-kafka 2.16 admits one caller at a time, known by its thread id or by this variable (its own asyncio consumer
    sets it). librdkafka itself is thread-safe. Versions without the variable have no such gate.
    """
    identity = getattr(cimpl, "_reentry_identity_var", None)
    if identity is not None:
        identity.set(thread_id)


def names(partitions: Collection[TopicPartition]) -> str:
    """For sentences."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in partitions)


def _not_committable(partition: TopicPartition, position: Position) -> ClusterError | None:
    """Checked here because one such partition would blur the answers of all the others."""
    where = f"the commit of {names([partition])}"
    if position.offset < 0:
        return ClusterError(f"{where} has offset {position.offset}; offsets start at 0")
    if (length := _java_length(position.metadata)) > METADATA_MAX_CHARACTERS:
        return ClusterError(
            f"{where} has {length} characters of metadata; at most {METADATA_MAX_CHARACTERS} are stored"
        )
    if "\0" in position.metadata:
        return ClusterError(f"{where} has a NUL character in its metadata; encode it")
    return None


def _java_length(text: str) -> int:
    """The broker counts UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _refused(error: KafkaError, each: Assigned) -> ClusterError:
    return cluster_error(error, f"the commit of {each.topic}[{each.partition}]")
