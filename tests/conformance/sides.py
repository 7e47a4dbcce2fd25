"""What the tests need of each side beyond the ports: members in processes of their own that can die or stop, and gaps."""

from __future__ import annotations

import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import confluent_kafka
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from pipeline.kafka.cluster import connect as connect_kafka
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import (
    BulkProducer,
    Cluster,
    ConsumerPolicy,
    FetchFault,
    GroupConsumer,
    Message,
    Position,
    RecordProducer,
    TopicPartition,
    TopicSpec,
)
from pipeline.model.errors import ClusterError
from tests.patience import PATIENCE
from tests.topics import forget_topics

DEADLINE_S = 40.0 * PATIENCE
SESSION_MS = 2_000
ROOT = Path(__file__).resolve().parents[2]


def wait_until(
    condition: Callable[[], bool], what: str, step: Callable[[], object], timeout_s: float = DEADLINE_S
) -> None:
    """Take steps until the condition holds; fails past the deadline, saying what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        step()


class Listener:
    """Writes down what it hears. `drained` decides what `revoked` answers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[TopicPartition, ...]]] = []
        self.owned: set[TopicPartition] = set()
        self.faults: list[FetchFault] = []
        self.on_assigned: Callable[[Sequence[TopicPartition]], None] = lambda partitions: None
        self.drained: Callable[[Sequence[TopicPartition]], bool] = lambda partitions: True

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("assigned", tuple(partitions)))
        self.owned |= set(partitions)
        self.on_assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        self.events.append(("revoked", tuple(partitions)))
        if drained := self.drained(partitions):
            self.owned -= set(partitions)
        return drained

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("lost", tuple(partitions)))
        self.owned -= set(partitions)

    def fault(self, fault: FetchFault) -> None:
        self.faults.append(fault)

    def heard(self, kind: str) -> list[tuple[TopicPartition, ...]]:
        return [partitions for name, partitions in self.events if name == kind]


class MemberInTest:
    """A consumer with its listener and all that it was given."""

    def __init__(self, consumer: GroupConsumer, topic: str | None) -> None:
        self.consumer = consumer
        self.listener = Listener()
        self.records: list[Message] = []
        if topic is not None:
            consumer.subscribe(topic, self.listener)

    def poll(self, timeout_s: float = 0.02) -> list[Message]:
        batch = self.consumer.poll(500, timeout_s)
        self.records += batch
        return batch

    def offsets(self, partition: TopicPartition) -> list[int]:
        return [m.offset() for m in self.records if (m.topic(), m.partition()) == partition]


class Remote(Protocol):
    """A member whose process can be killed, stopped and continued."""

    def owned(self) -> set[TopicPartition]: ...

    def step(self) -> None:
        """Let it poll, where it does not do so by itself."""

    def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def commit(self, partition: TopicPartition, offset: int) -> str | None:
        """At once, without polling first; the name of the error, or None."""
        ...

    def lost(self) -> bool: ...

    def close(self) -> None: ...


class Side:
    """One cluster under test; keeps track of clients and closes them."""

    def __init__(self, cluster: Cluster, protocol: str) -> None:
        self.cluster = cluster
        self.protocol = protocol
        self.admin = cluster.admin()
        self.prefix = f"conformance.{uuid.uuid4().hex[:12]}."
        self._closing: list[Callable[[], None]] = []
        self._topics = itertools.count()

    def topic(self, partitions: int = 1, **configs: str) -> str:
        name = f"{self.prefix}{next(self._topics)}"
        settings = {key.replace("_", "."): value for key, value in configs.items()}
        self.admin.create_topics([TopicSpec(name, partitions, 1, settings)])
        return name

    def policy(self, group: str | None = None, **changes: object) -> ConsumerPolicy:
        settings: dict[str, object] = {
            "group": group or f"group.{uuid.uuid4().hex[:12]}",
            "client_id": f"client-{uuid.uuid4().hex[:8]}",
            "protocol": self.protocol,
            "session_timeout_ms": SESSION_MS,
        }
        return ConsumerPolicy(**(settings | changes))  # type: ignore[arg-type]

    def member(self, topic: str | None = None, group: str | None = None, **changes: object) -> MemberInTest:
        member = MemberInTest(self.cluster.consumer(self.policy(group, **changes)), topic)
        self._closing.append(member.consumer.close)
        return member

    def producer(self) -> RecordProducer:
        producer = self.cluster.producer()
        self._closing.append(lambda: producer.close(1.0))
        return producer

    def bulk_producer(self) -> BulkProducer:
        producer = self.cluster.bulk_producer()
        self._closing.append(lambda: producer.close(1.0))
        return producer

    def fill(self, partition: TopicPartition, count: int, first: int = 0, timestamp_ms: int = 0) -> None:
        """Values are b"0", b"1" ... as numbers of the records; acknowledged when it returns."""
        producer = self.producer()
        errors: list[ClusterError | None] = []
        for number in range(first, first + count):
            producer.send(
                partition.topic,
                None,
                b"%d" % number,
                partition=partition.partition,
                timestamp_ms=timestamp_ms and timestamp_ms + number,
                delivered=lambda error, offset: errors.append(error),
            )
        assert producer.flush(DEADLINE_S) == 0
        assert errors == [None] * count

    def remote(self, topic: str, group: str) -> Remote:
        raise NotImplementedError

    def aborted_transaction(self, partition: TopicPartition, count: int) -> None:
        """Leave a gap of at least `count` offsets that read_committed readers never see."""
        raise NotImplementedError

    def compact(self, topic: str) -> None:
        """Have the log cleaned; returns when it may take effect, not when it has."""
        raise NotImplementedError

    def small_buffer(self, records: int) -> BulkProducer:
        """A producer that holds so many records and does not send them soon."""
        raise NotImplementedError

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


class MemorySide(Side):
    def __init__(self, name: str) -> None:
        self.memory = MemoryCluster(name)
        super().__init__(self.memory, "classic")

    def remote(self, topic: str, group: str) -> Remote:
        remote = MemoryRemote(self, topic, group)
        self._closing.append(remote.close)
        return remote

    def aborted_transaction(self, partition: TopicPartition, count: int) -> None:
        self.memory.skip_offsets(partition, count + 1)

    def compact(self, topic: str) -> None:
        self.memory.compact(topic)

    def small_buffer(self, records: int) -> BulkProducer:
        producer = self.memory.producer()
        producer.max_queued_records = records
        self.memory.faults.land_delay_ms = (300, 300)
        self._closing.append(lambda: producer.close(1.0))
        return producer


class MemoryRemote:
    def __init__(self, side: MemorySide, topic: str, group: str) -> None:
        self._memory = side.memory
        self._policy = side.policy(group)
        self._member = MemberInTest(side.memory.consumer(self._policy), topic)
        self._runs = True

    def owned(self) -> set[TopicPartition]:
        return self._member.listener.owned

    def step(self) -> None:
        if self._runs:
            self._member.poll(0.005)

    def kill(self) -> None:
        self._runs = False
        self._memory.kill(self._policy.client_id)

    def freeze(self) -> None:
        self._runs = False
        self._memory.freeze(self._policy.client_id)

    def thaw(self) -> None:
        self._memory.thaw(self._policy.client_id)

    def commit(self, partition: TopicPartition, offset: int) -> str | None:
        error = self._member.consumer.commit_now({partition: Position(offset)}, 5.0)[partition]
        self._runs = True
        return None if error is None else type(error).__name__

    def lost(self) -> bool:
        return bool(self._member.listener.heard("lost"))

    def close(self) -> None:
        self._member.consumer.close()


class KafkaSide(Side):
    def __init__(self, address: str, protocol: str) -> None:
        self.address = address
        super().__init__(connect_kafka(address), protocol)
        self._closing.append(lambda: forget_topics(address, self.prefix))

    def remote(self, topic: str, group: str) -> Remote:
        remote = KafkaRemote(self.address, topic, self.policy(group))
        self._closing.append(remote.close)
        return remote

    def aborted_transaction(self, partition: TopicPartition, count: int) -> None:
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": self.address, "transactional.id": uuid.uuid4().hex, "linger.ms": 0}
        )
        producer.init_transactions(DEADLINE_S)
        end = self.admin.end_offsets([partition])[partition] + count + 1
        producer.begin_transaction()
        for _ in range(count):
            producer.produce(partition.topic, b"aborted", partition=partition.partition)
        assert producer.flush(DEADLINE_S) == 0
        producer.abort_transaction(DEADLINE_S)

        def marked() -> bool:
            return self.admin.end_offsets([partition])[partition] == end

        # The coordinator answers before it has written the marker.
        wait_until(marked, "the transaction's marker", lambda: time.sleep(0.01))

    def compact(self, topic: str) -> None:
        """The cleaner looks every 15 s unless told otherwise; it cleans closed segments, so one more record is needed."""
        admin = AdminClient({"bootstrap.servers": self.address})
        often = ConfigEntry("log.cleaner.backoff.ms", "200", incremental_operation=AlterConfigOpType.SET)
        for node in admin.describe_cluster().result(DEADLINE_S).nodes:
            broker = ConfigResource(ResourceType.BROKER, str(node.id), incremental_configs=[often])
            for future in admin.incremental_alter_configs([broker]).values():
                future.result(DEADLINE_S)
        producer = self.producer()
        producer.send(topic, b"closes the segment", b"", partition=0)
        assert producer.flush(DEADLINE_S) == 0

    def small_buffer(self, records: int) -> BulkProducer:
        settings = {"producer.queue.buffering.max.messages": str(records), "producer.linger.ms": "300"}
        producer = connect_kafka(self.address, client_settings=settings).bulk_producer()
        self._closing.append(lambda: producer.close(5.0))
        return producer


class KafkaRemote:
    """A process running `member.py`; orders on its standard input, events on its standard output."""

    def __init__(self, address: str, topic: str, policy: ConsumerPolicy) -> None:
        wanted = [address, topic, policy.group, policy.client_id, policy.protocol, str(policy.session_timeout_ms)]
        script = [sys.executable, "-m", "tests.conformance.member", *wanted]
        self._process = subprocess.Popen(script, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[dict[str, object]] = queue.Queue()
        self._owned: set[TopicPartition] = set()
        self._lost = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def _take(self, event: dict[str, object]) -> None:
        partitions = {TopicPartition(*each) for each in event.get("partitions", [])}  # type: ignore[attr-defined]
        if event["event"] == "assigned":
            self._owned |= partitions
        else:
            self._owned -= partitions
        self._lost |= event["event"] == "lost"

    def owned(self) -> set[TopicPartition]:
        while not self._lines.empty():
            self._take(self._lines.get())
        return self._owned

    def step(self) -> None:
        assert self._process.poll() is None, "the member process ended by itself"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._order("hold")
        self._until("holding")
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def commit(self, partition: TopicPartition, offset: int) -> str | None:
        """After `freeze` and `thaw`: the first thing that the process does when it goes on."""
        self._order(json.dumps([*partition, offset]))
        error = self._until("commit")["error"]
        return None if error is None else str(error)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _until(self, kind: str) -> dict[str, object]:
        while (event := self._lines.get(timeout=DEADLINE_S))["event"] != kind:
            self._take(event)
        return event

    def lost(self) -> bool:
        self.owned()
        return self._lost

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
