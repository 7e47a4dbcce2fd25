"""A worker of the demo that cheats in its ledger: leaves one record out, writes one three times, and swaps two. The demo must see it."""

from __future__ import annotations

import sys
from typing import Any

from pipeline.demo import worker
from pipeline.worker.context import Context

AUDIT = "demo.ledger.audit"
LEFT_OUT, WRITTEN_THRICE, HELD_BACK = (0, 3), (0, 5), (1, 2)
"""(partition, offset) in the source topic."""

_held: dict[bytes | None, Any] = {}
_honest = Context.emit


def _emit(self: Context, topic: str, key: Any, value: object, headers: Any = None) -> Any:
    place = (self.partition, self.offset)
    if topic != AUDIT:
        return _honest(self, topic, key, value, headers)
    if place == LEFT_OUT:
        return None
    if place == HELD_BACK:
        _held[self.key] = value
        return None
    if place == WRITTEN_THRICE:
        _honest(self, topic, key, value, headers)
        _honest(self, topic, key, value, headers)
    accepted = _honest(self, topic, key, value, headers)
    if self.key in _held:
        _honest(self, topic, key, _held.pop(self.key), headers)
    return accepted


if __name__ == "__main__":
    Context.emit = _emit  # type: ignore[method-assign]
    sys.exit(worker.main(sys.argv[1:]))
