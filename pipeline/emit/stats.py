"""What a publisher has done so far, and what it could not: counters and results as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Live counts of one publisher; written by its owner thread, but for `published` and `full` (under its lock)."""

    published: int = 0
    delivered: int = 0
    failed: int = 0
    spooled: int = 0
    resent: int = 0
    full: int = 0


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """One look at a publisher.

    `published` records were taken from the agent; `delivered` were acknowledged by Kafka (also some that an
    earlier process spooled);
    `dropped` by "drop_oldest"; `failed` refused by Kafka for good; `spooled` written to disk, `resent`
    acknowledged from there;
    `full` times BufferFull was raised. `waiting` and `in_flight` are in memory now, `buffered_bytes` their size,
    `spool_bytes` on disk. `away` = the broker does not answer, or does not take them; `trouble` says which, and what to do;
    `missing_topic`: the topic that does not exist, if it is that; `denied`: it is a right that is missing.
    """

    published: int
    delivered: int
    dropped: int
    failed: int
    spooled: int
    resent: int
    full: int
    waiting: int
    in_flight: int
    buffered_bytes: int
    spool_bytes: int
    away: bool
    trouble: str = ""
    missing_topic: str = ""
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a flush or close left: `undelivered` records in memory (lost, after a close) with the first 100
    event ids, and bytes on disk.

    What is on disk is sent later, by this publisher or by the next one with the same spool_dir. It counts as
    undelivered only in `complete`. `refused`: records that Kafka refused for good since the publisher was made, all lost;
    the log names each. `trouble`: why something is left, where that is known.
    """

    undelivered: int = 0
    event_ids: tuple[str, ...] = ()
    spool_bytes: int = 0
    trouble: str = ""
    refused: int = 0

    @property
    def complete(self) -> bool:
        """Everything reached Kafka, but for what the mode "drop_oldest" dropped."""
        return not (self.undelivered or self.spool_bytes or self.refused)
