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


def typed_key(text: str) -> bytes:
    """The bytes of a key as somebody typed it: a shell's bytes that are no UTF-8 come as lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates are nothing that a shell gives
        return text.encode("utf-8", "replace")


def typed_keys(text: str) -> tuple[bytes, ...]:
    """Every key that is meant: the text itself, and after it the bytes that tables show as this text (`0xff01`)."""
    raw = typed_key(text)
    try:
        shown = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return (raw,)
    return (raw, shown) if key_text(shown) == text else (raw,)
