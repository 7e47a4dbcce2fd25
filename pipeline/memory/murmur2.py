"""Which partition a key goes to: the murmur2 hash of Kafka's Java client (librdkafka: `murmur2_random`)."""

from __future__ import annotations

_M, _R, _SEED, _MASK = 0x5BD1E995, 24, 0x9747B28C, 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2, unsigned, with the seed that Kafka uses."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ k >> _R) * _M & _MASK
        h = h * _M & _MASK ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The sign bit is cleared, as the Java client does, before taking the remainder."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
