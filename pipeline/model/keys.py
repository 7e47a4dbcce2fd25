"""Record keys as text, the same wherever one is shown, filtered by or written as JSON."""

from __future__ import annotations


def key_text(raw: bytes | None) -> str | None:
    """UTF-8, else `0x` and hex; None for a record without key."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "0x" + raw.hex()
