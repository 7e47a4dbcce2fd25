"""A stop that ends: after a deadline the process leaves, whatever Faust is still waiting for.

Stopping flushes the producer, and aiokafka waits without end for a topic or broker that is gone. Leaving at once is
safe: an offset is committed only after every write it stands for was acknowledged.
"""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger(__name__)

CRASH_S = 5.0
STOP_S = 25.0


def leave_within(seconds: float, why: str) -> None:
    """Unless the process ends by itself before, end it with code 1 after so many seconds."""

    def leave() -> None:
        log.error("The views worker did not stop within %.0f s (%s): leaving.", seconds, why)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
