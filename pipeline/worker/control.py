"""Follows the control topic: every worker reads it in full and obeys its switches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.model.cluster import Message, PartitionReader, TopicPartition
from pipeline.model.control import ControlRecordError, Pause, Switches, record_key
from pipeline.model.errors import PipelineError

POLL_S = 0.25
RETRY_S = 1.0
PAUSED = b"pause/"
FIRST_READ_S = 10.0
"""How long a worker that has just started takes no work because it has not read the control topic to its end."""


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
        self._next = 0
        self._attached = False
        self._caught_up = switches.read = False
        self._until_s = time.monotonic() + FIRST_READ_S
        self.resumed: set[str] = set()

    def attach(self) -> None:
        """Read from the beginning; `step` is then called by whoever drives it."""
        self._reader.assign({self._partition: self._next})
        self._attached = True

    def start(self) -> None:
        self.attach()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.step(POLL_S)

    def step(self, timeout_s: float) -> None:
        try:
            if not self._attached:
                self.attach()
            messages = self._reader.poll(500, timeout_s)
        except PipelineError as error:
            # A reader that met an error stands still: begin again where it was, for as long as it takes.
            self._log.error("the control topic can't be read: trying again", error=str(error))
            self._stop.wait(RETRY_S if timeout_s else 0)
            self._attached = False
            self._go_on()
            return
        if messages:
            self._next = (messages[-1].offset() or 0) + 1
            self._deliver(lambda: self._fold(messages))
        if not self._caught_up and (self._partition in self._reader.ended() or time.monotonic() > self._until_s):
            self._go_on()

    def _go_on(self) -> None:
        """Read to its end, or it can't be read now: the subscriptions begin to work."""
        if not self._caught_up:
            self._caught_up = True
            self._deliver(self._first_read)

    def _first_read(self) -> None:
        self._switches.read = True
        self._changed()

    def _fold(self, messages: list[Message]) -> None:
        for message in messages:
            try:
                self._switches.fold(message.key(), message.value())
            except ControlRecordError as error:
                self._log.error("control record ignored", offset=message.offset(), error=str(error))
            key = message.key() or b""
            if message.value() is None and key.startswith(
                PAUSED
            ):  # of the others nobody asks, and they would be kept for ever
                self.resumed.add(key.decode("utf-8", "replace"))
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
