"""Follows the control topic: every worker reads it in full and obeys its switches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeline.model.cluster import Message, PartitionReader, TopicPartition
from pipeline.model.control import ControlRecordError, Pause, Switches, record_key

POLL_S = 0.25


class ControlFollower:
    """Reads in a thread, folds in the engine's. `changed(groups that were resumed)` is called there after each batch."""

    def __init__(
        self,
        reader: PartitionReader,
        topic: str,
        switches: Switches,
        deliver: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        log: Any,
    ) -> None:
        self._reader = reader
        self._partition = TopicPartition(topic, 0)
        self._switches = switches
        self._deliver = deliver
        self._changed = changed
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self.resumed: set[str] = set()

    def attach(self) -> None:
        """Read from the beginning; `step` is then called by whoever drives it."""
        self._reader.assign({self._partition: 0})

    def start(self) -> None:
        self.attach()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.step(POLL_S)

    def step(self, timeout_s: float) -> None:
        messages = self._reader.poll(500, timeout_s)
        if messages:
            self._deliver(lambda: self._fold(messages))

    def _fold(self, messages: list[Message]) -> None:
        for message in messages:
            try:
                self._switches.fold(message.key(), message.value())
            except ControlRecordError as error:
                self._log.error("control record ignored", offset=message.offset(), error=str(error))
            if message.value() is None and message.key() is not None:
                self.resumed.add((message.key() or b"").decode("utf-8", "replace"))
        self._changed()

    def was_resumed(self, group: str) -> bool:
        """True once after the group's pause was undone, whether or not it was on: resets a tripped flood guard."""
        key = record_key(Pause(group))
        if key in self.resumed:
            self.resumed.discard(key)
            return True
        return False

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._reader.close()
