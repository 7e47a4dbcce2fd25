"""The states of a job, and the moves between them that there are.

             .------> scheduled --.            .---> completed, completed_with_warning
             |                    v            |
    enqueued +-----------------> queued --> running ---> failed, dead_letter
                                  ^  ^       | | |
                                  |  '-------' | '-----> cancelled
                                  |  stalled,  v
                                  |  let go   retrying, waiting
                                  '------------'

A state at the right is terminal: only an operator's retry leaves it, and that makes a new round of the same job. What comes late
for an older version of the job changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class JobState(enum.Enum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """A durable step waits for a time or an event and holds no worker."""
    RETRYING = "retrying"
    COMPLETED = "completed"
    COMPLETED_WITH_WARNING = "completed_with_warning"
    FAILED = "failed"
    """Given up where the job's type wants no dead letters."""
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"


_S = JobState
TERMINAL = frozenset({_S.COMPLETED, _S.COMPLETED_WITH_WARNING, _S.FAILED, _S.CANCELLED, _S.DEAD_LETTER})
SUCCEEDED = frozenset({_S.COMPLETED, _S.COMPLETED_WITH_WARNING})
TIMED = frozenset({_S.SCHEDULED, _S.RETRYING})
"""They wait for their time."""
GIVEN_UP = frozenset({_S.FAILED, _S.CANCELLED, _S.DEAD_LETTER})
"""What an operator may retry."""

MOVES: Mapping[JobState, frozenset[JobState]] = {
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED}),
    _S.RUNNING: TERMINAL | {_S.QUEUED, _S.RETRYING, _S.WAITING},
    _S.WAITING: frozenset({_S.QUEUED, _S.CANCELLED, _S.FAILED, _S.DEAD_LETTER}),
    _S.RETRYING: frozenset({_S.QUEUED, _S.CANCELLED}),
    **dict.fromkeys(SUCCEEDED, frozenset()),
    **dict.fromkeys(GIVEN_UP, frozenset({_S.QUEUED})),
}
"""From a state to those that may follow it. GIVEN_UP to QUEUED is an operator's retry."""
FIRST = frozenset({_S.SCHEDULED, _S.QUEUED, _S.CANCELLED, _S.DEAD_LETTER})
"""What a job may begin as: cancelled when it is expired already, a dead letter when nobody knows its type."""
