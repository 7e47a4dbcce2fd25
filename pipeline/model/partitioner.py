"""The partition a key goes to: murmur2 as the Java client and librdkafka's `murmur2_random` compute it (KIP-369's default for keys)."""

from __future__ import annotations

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash, unsigned. Checked against the values in Kafka's own test of its hash."""
    length = len(data)
    h = _SEED ^ length
    for at in range(0, length - length % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = h * _M & _MASK ^ k
    tail = data[length - length % 4 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The sign bit is cleared, as the Java client does, before taking the remainder."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
