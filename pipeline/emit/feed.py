"""Feeding a publisher as fast as Kafka takes it, whatever its buffer mode: for imports and pipes, where
nothing may be dropped and waiting is fine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.emit.publisher import Publisher
from pipeline.emit.stats import Leftover
from pipeline.model.errors import BufferFull, ClusterUnavailable, NotAuthorized, TopologyError
from pipeline.model.events import RunEvent

_TICK_S = 0.005
_TOPIC_PATIENCE_S = 5.0
"""A topic that does not exist may just have been made, as may an ACL, but neither comes by itself."""


class Feeder:
    """Publishes in order and waits for room. Gives up with ClusterUnavailable when nothing is acknowledged
    for `patience_s`, and sooner with TopologyError when the topic does not exist, with NotAuthorized without the right."""

    def __init__(
        self, publisher: Publisher, patience_s: float = 30.0, progress: Callable[[], None] | None = None
    ) -> None:
        self._publisher = publisher
        self._patience_s = patience_s
        self._progress = progress or (lambda: None)
        self._acknowledged = -1
        self._moved_at = time.monotonic()

    def feed(self, events: Sequence[RunEvent]) -> None:
        """Publish all of them. Raises EncodeError for one that does not fit; those before it are published."""
        for event in events:
            self._wait_until_below(self._publisher.policy.max_records // 2 or 1)
            while True:
                try:
                    self._publisher.publish(event)
                    break
                except BufferFull:
                    self._check_progress()

    def finish(self) -> Leftover:
        """Wait until all is acknowledged."""
        self._wait_until_below(1)
        return self._publisher.flush(self._patience_s)

    def _wait_until_below(self, limit: int) -> None:
        while self._publisher.pending >= limit:
            self._check_progress()
            time.sleep(_TICK_S)

    def _check_progress(self) -> None:
        stats = self._publisher.stats()
        answered = stats.delivered + stats.failed
        now = time.monotonic()
        if answered != self._acknowledged:
            self._acknowledged, self._moved_at = answered, now
        elif (stats.missing_topic or stats.denied) and now - self._moved_at >= min(self._patience_s, _TOPIC_PATIENCE_S):
            kind = TopologyError if stats.missing_topic else NotAuthorized
            raise kind(f"{stats.trouble} ({self._publisher.pending} records to go)")
        elif now - self._moved_at >= self._patience_s:
            raise ClusterUnavailable(
                f"Kafka acknowledged nothing for {self._patience_s:g} s ({self._publisher.pending} records to go): "
                + (stats.trouble or "check that the broker is reachable and that the ACLs allow writing.")
            )
        self._progress()
