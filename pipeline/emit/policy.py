"""What a publisher may cost the agent: one frozen policy, checked when it is built.

The policy decides only what happens while Kafka takes less than the agent gives: while it keeps up, the
modes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError

Mode = Literal["block", "drop_oldest", "spool"]
MAX_IN_FLIGHT = 20_000


@dataclass(frozen=True, slots=True)
class BufferPolicy:
    """Bounds of the buffer, and what a full one means.

    `mode`: "block" waits at most `block_timeout` ("250ms", or seconds), then raises BufferFull;
    "drop_oldest" never waits and
    drops the oldest record that was not handed to the Kafka client yet (counted and logged); "spool" writes to
    `spool_dir` (at most `spool_max_bytes`, all publishers' own share each) and sends it later; a full spool
    is treated like "block".
    `max_records` and `max_bytes` bound everything in memory: waiting and sent but not acknowledged.
    `away_after`: no acknowledgement for so long means that the broker is away.
    `fsync_interval`: a power cut loses at most so much of what was spooled (0 = sync every write); a killed
    process loses nothing spooled.
    Raises ConfigurationError naming the setting.
    """

    mode: Mode = "block"
    max_records: int = 20_000
    max_bytes: int = 64 * 1024 * 1024
    block_timeout: str | float = "1s"
    spool_dir: str | Path | None = None
    spool_max_bytes: int = 1024 * 1024 * 1024
    away_after: str | float = "2s"
    fsync_interval: str | float = "1s"
    block_timeout_ms: int = field(init=False, default=0)
    away_after_ms: int = field(init=False, default=0)
    fsync_interval_ms: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(f"buffer mode={self.mode!r} is not known; use one of {', '.join(get_args(Mode))}.")
        for name, low in (("max_records", 2), ("max_bytes", 1_024), ("spool_max_bytes", 4_096)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigurationError(f"buffer {name}={value!r} must be a whole number of at least {low}.")
        if self.mode == "spool" and not self.spool_dir:
            raise ConfigurationError("buffer mode='spool' needs spool_dir: name a folder on a local disk.")
        for name in ("block_timeout", "away_after", "fsync_interval"):
            object.__setattr__(self, f"{name}_ms", parse_duration_ms(getattr(self, name), f"buffer {name}"))

    @property
    def window(self) -> int:
        """Most records sent and not acknowledged; half the buffer, so that something is always left to drop
        or spool."""
        return min(MAX_IN_FLIGHT, max(1, self.max_records // 2))
