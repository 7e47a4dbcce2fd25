"""What goes wrong on a simulated cluster, how often: seeded chances and explicit switches, changeable at any time.

Ranges are (least, most), drawn evenly. The defaults inject nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Range = tuple[int, int]


@dataclass(slots=True)
class Faults:
    """Chances are per record, per commit, or per partition of a commit, as named."""

    seed: int = 0
    # producing
    land_delay_ms: Range = (0, 0)
    """From `send` until the record is in the log; order per producer and partition is kept."""
    ack_delay_ms: Range = (0, 0)
    """From then until the delivery report: readers can see the record before its sender knows."""
    send_failure: float = 0.0
    """Not written, reported as failed."""
    ack_lost: float = 0.0
    """Written, reported as failed."""
    ack_twice: float = 0.0
    """The delivery report comes again, some time after the first."""
    ack_twice_ms: Range = (0, 500)
    denied_topics: set[str] = field(default_factory=set)
    """Writing is refused (no ACL)."""
    # both ways
    unavailable: set[tuple[str, int]] = field(default_factory=set)
    """Partitions without a leader: nothing lands, nothing is fetched, offsets are `ClusterUnavailable`."""
    # fetching
    fetch_records: Range | None = None
    """Each poll returns at most a number drawn from here."""
    bad_batches: set[tuple[str, int, int]] = field(default_factory=set)
    """(topic, partition, offset) that can't be read: a `FetchFault` at each try, until sought past."""
    bad_ranges: set[tuple[str, int, int, int]] = field(default_factory=set)
    """(topic, partition, first, last): the same for a batch of several records; any offset inside gives the fault of its first."""
    # membership
    lost_as_revoked: float = 0.0
    """A member whose session ended is told "revoked" instead of "lost" (librdkafka's flag can be missing)."""
    # committing
    commit_delay_ms: Range = (0, 0)
    commit_partition_failure: float = 0.0
    """One partition is refused while the others of the request are stored."""
    commit_lost: float = 0.0
    """The whole request is stored, its answer is lost."""
    commit_late: float = 0.0
    """The answer is lost and the request is stored later: it can overtake the commits sent after it."""
    commit_late_ms: Range = (1, 2_000)
    commit_twice: float = 0.0
    """The answer to a commit comes again, with a later poll."""
    transaction_refused: float = 0.0
    """A transaction's commit is refused, and nothing of it happened."""
    transaction_stale: float = 0.0
    """The same, since the group is in another generation than the membership that it came with."""
    transaction_torn: float = 0.0
    """Its positions are stored, and nobody knows how it ends: it waits for its producer's next life, or its time-out."""
    transaction_late: float = 0.0
    """The same, and the request to end it arrives later: unless its producer was made anew, it commits what is open by then."""
    transaction_late_ms: Range = (1, 400)
    no_transactions: bool = False
    """None can be begun or aborted (a new producer finds no coordinator); one that is open can still be committed."""
    failing_commits: dict[tuple[str, int], int] = field(default_factory=dict)
    """How many of the next commits of a partition are refused, for that partition alone."""
    random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def happens(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    def drawn(self, between: Range) -> int:
        least, most = between
        return least if least == most else self.random.randint(least, most)

    def refuses_commit(self, partition: tuple[str, int]) -> bool:
        if (left := self.failing_commits.get(partition, 0)) > 0:
            self.failing_commits[partition] = left - 1
            return True
        return self.happens(self.commit_partition_failure)
