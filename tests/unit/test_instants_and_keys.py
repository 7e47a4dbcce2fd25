"""Instants are exact, and cut off below a millisecond; keys are text or hex, and never an error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.instants import epoch_ms_of
from pipeline.model.keys import key_text, typed_keys

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999), st.integers(0, 999))
def test_every_millisecond_of_the_calendar_is_found_again(ms: int, microseconds: int) -> None:
    moment = EPOCH + timedelta(milliseconds=ms, microseconds=microseconds)
    assert epoch_ms_of(moment) == epoch_ms_of(moment.replace(tzinfo=None)) == ms


@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
@pytest.mark.parametrize("hours", [-23, 0, 23])
def test_a_zone_moves_an_instant_also_at_the_ends_of_the_calendar(edge: datetime, hours: int) -> None:
    zoned = edge.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert epoch_ms_of(zoned) == epoch_ms_of(edge) - hours * 3_600_000


@pytest.mark.parametrize(("raw", "text"), [(None, None), (b"", ""), ("ä".encode(), "ä"), (b"\xff\x00", "0xff00")])
def test_keys_as_text(raw: bytes | None, text: str | None) -> None:
    assert key_text(raw) == text


def test_a_key_is_found_as_it_is_typed_and_as_tables_show_it() -> None:
    assert typed_keys("0xff00") == (b"0xff00", b"\xff\x00")
    for text in ("run-7", "0x6162", "0xFF00", "0xff 00", "0x", "ff00", "0xf"):
        assert typed_keys(text) == (text.encode(),), "no table shows a key so that is not this text"
    assert typed_keys("\udcff\x00") == (b"\xff\x00",)
