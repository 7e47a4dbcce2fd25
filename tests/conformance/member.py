"""A group member as a process: prints what it hears as JSON lines, and takes two orders on standard input.

`hold` stops polling until the other one comes: `[topic, partition, offset]`, which is committed before anything else. So a
process that was stopped commits as the zombie that it is, before its client can hear what happened and join again.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Sequence

from pipeline.kafka.cluster import connect
from pipeline.model.cluster import ConsumerPolicy, FetchFault, Position, TopicPartition


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


class Speaker:
    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        say("assigned", partitions=partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        say("revoked", partitions=partitions)
        return True

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        say("lost", partitions=partitions)

    def fault(self, fault: FetchFault) -> None:
        say("fault", text=fault.text)


def main(address: str, topic: str, group: str, client_id: str, protocol: str, session_timeout_ms: str) -> None:
    policy = ConsumerPolicy(group, client_id, protocol, int(session_timeout_ms))
    consumer = connect(address).consumer(policy)
    consumer.subscribe(topic, Speaker())
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [orders.put(line) for line in sys.stdin], daemon=True).start()
    while True:
        consumer.poll(100, 0.02)
        if not orders.empty():
            assert orders.get().strip() == "hold"
            say("holding")
            name, number, offset = json.loads(orders.get())
            partition = TopicPartition(name, number)
            error = consumer.commit_now({partition: Position(offset)}, 10.0)[partition]
            say("commit", error=None if error is None else type(error).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
