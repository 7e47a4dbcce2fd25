"""The load of a trial: records published at a steady pace, most of them easy, some slow, failing, rejected or poison."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer

from tests.fault.history import Origin, Sent

TICK_S = 0.01
NUMBER = "n"
"""Header with the number of a record whose value is not JSON."""
Value = dict[str, Any] | bytes | None


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of 1. `failing`: one or two attempts fail; `poison`: all do; `rejected`: given up at once; `slow`: `slow_s` long.

    `emits`: every so many-th record writes an output (0: none). `keys_of`: about so many records share a key.
    """

    failing: float = 0.02
    poison: float = 0.001
    rejected: float = 0.002
    slow: float = 0.01
    slow_s: float = 0.05
    emits: int = 5
    keys_of: int = 20


def values(seed: int, count: int, mix: Mix) -> list[tuple[str, Value]]:
    """Key and value of each record: the same for the same seed."""
    draw = random.Random(seed)
    keys = max(20, count // mix.keys_of)
    found: list[tuple[str, Value]] = []
    for number in range(count):
        value: dict[str, Any] = {"n": number}
        luck = draw.random()
        if luck < mix.failing:
            value["fails"] = draw.choice((1, 1, 2))
        elif luck < mix.failing + mix.poison:
            value["fails"] = 99
        elif luck < mix.failing + mix.poison + mix.rejected:
            value["reject"] = True
        elif luck < mix.failing + mix.poison + mix.rejected + mix.slow:
            value["sleep"] = mix.slow_s
        if mix.emits and number % mix.emits == 0:
            value["emit"] = True
        found.append((f"k{draw.randrange(keys)}", value))
    return found


def encoded(number: int, value: dict[str, Any]) -> bytes:
    """A record's bytes as they are published."""
    return json.dumps({**value, "n": number}).encode()


class Feed:
    """Publishes in a thread of its own; `sent` are the acknowledged records by their place in the source."""

    def __init__(self, bootstrap: str, topic: str, records: Sequence[tuple[str, Value]], rate: float) -> None:
        self.sent: dict[Origin, Sent] = {}
        self.problems: list[str] = []
        self.count = len(records)
        self._topic = topic
        self.records = records
        self._rate = rate
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "enable.idempotence": True,
                "message.timeout.ms": 120_000,
                "queue.buffering.max.messages": 1_000_000,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._publish, name="feed", daemon=True)

    def lengthen(self, count: int, seconds: float) -> None:
        """That many records, spread over the load, take so long."""
        for number in range(count):
            value = self.records[number * self.count // count][1]
            assert isinstance(value, dict)
            value["sleep"] = seconds

    def start(self) -> None:
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """No more records than were published so far."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(130)

    def wait(self, deadline_s: float = 180.0) -> None:
        self._thread.join(deadline_s)
        assert self.over, f"the load was not published in {deadline_s} s: {len(self.sent)} of {self.count}"
        assert not self.problems, f"the load could not be published: {self.problems[:3]}"
        assert self._stop.is_set() or len(self.sent) == self.count

    def _publish(self) -> None:
        began, next_one = time.monotonic(), 0
        while next_one < self.count and not self._stop.is_set():
            due = min(self.count, int((time.monotonic() - began) * self._rate) + 1)
            for number in range(next_one, due):
                self._send(number)
            next_one = due
            self._producer.poll(0)
            self._stop.wait(TICK_S)
        if self._producer.flush(120):
            self.problems.append("not everything was acknowledged in 120 s")

    def _send(self, number: int) -> None:
        key, value = self.records[number]
        emits = isinstance(value, dict) and "emit" in value and not value.get("reject")

        def acknowledged(error: Any, message: Any) -> None:
            if error is not None:
                self.problems.append(str(error))
            else:
                self.sent[message.partition(), message.offset()] = Sent(number, key, emits)

        if isinstance(value, dict):
            given = [("pl.event_id", str(value["event"]).encode())] if "event" in value else []
            self._producer.produce(
                self._topic, encoded(number, value), key.encode(), on_delivery=acknowledged, headers=given
            )
        else:
            headers = [(NUMBER, str(number).encode())]
            self._producer.produce(self._topic, value, key.encode(), on_delivery=acknowledged, headers=headers)
