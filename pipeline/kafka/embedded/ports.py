"""Free ports on loopback, below the range that systems use for outgoing connections.

A client that retries a dead broker's port inside that range can end up connected to itself, and any other
outgoing connection could take the port of a node that is down for a moment.
"""

from __future__ import annotations

import random
import socket

from pipeline.kafka.embedded.properties import HOST
from pipeline.model.errors import BrokerStartError

_FIRST, _LAST = 20_000, 32_000
_TRIES = 200


def is_free(port: int) -> bool:
    """True when a server could listen on it now (a closed connection's leftover does not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Distinct ports that are free now. Another process may take one before the server does: start again
    then.
    """
    found: set[int] = set()
    draw = random.SystemRandom()
    for _ in range(_TRIES):
        if len(found) == count:
            return sorted(found)
        port = draw.randint(_FIRST, _LAST)
        if is_free(port):
            found.add(port)
    raise BrokerStartError(f"No {count} free ports between {_FIRST} and {_LAST} on {HOST}; end other servers first.")


def answers(port: int, timeout_s: float = 0.2) -> bool:
    """True when something accepts connections there."""
    try:
        socket.create_connection((HOST, port), timeout_s).close()
    except OSError:
        return False
    return True
