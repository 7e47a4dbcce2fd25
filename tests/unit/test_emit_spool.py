"""The spool on disk: what was written comes back in order, also after damage, a full disk, or another owner's death."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pipeline.emit import frames
from pipeline.emit.buffer import Outgoing
from pipeline.emit.spool import Spool
from pipeline.model.errors import ConfigurationError

MAX = 1 << 20


def record(number: int, size: int = 10) -> Outgoing:
    made = Outgoing(
        "topic", b"k%d" % (number % 3), b"%d" % number + b"." * size, [("pl.event_id", b"e%d" % number), ("x", None)]
    )
    made.number = number
    return made


def numbers(records: list[Outgoing]) -> list[int]:
    return [item.number for item in records]


def abandon(spool: Spool) -> None:
    """The owner dies: the lock goes, the files stay."""
    os.close(spool._own._lock)
    for folder in spool._left:
        os.close(folder._lock)


def drain(spool: Spool, batch: int = 7) -> list[int]:
    found: list[int] = []
    while True:
        records, _ = spool.read(batch, MAX)
        if not records:
            spool.commit()
            return found
        found += numbers(records)
        spool.commit()


def only_segment(spool: Spool) -> Path:
    (path,) = spool._own.path.glob("*.seg")
    return path


def test_a_frame_holds_everything_of_a_record() -> None:
    for key, value, unencoded in ((b"k", b"v", None), (None, b"", "agent.run.Message"), (b"", None, None)):
        original = Outgoing("tópic", key, value, [("ä", b"\x00"), ("n", None)])
        original.unencoded = unencoded
        original.number = 2**40
        (payload,) = frames.scan(frames.pack(original), final=True, limit=9).payloads
        back = frames.unpack(payload)
        assert (back.topic, back.key, back.value, back.headers, back.number, back.unencoded) == (
            "tópic",
            key,
            value,
            original.headers,
            2**40,
            unencoded,
        )


def test_written_in_order_read_in_order_over_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64 * 1024)
    assert sum(spool.append([record(n, 100)]) for n in range(200)) == 200
    assert len(list(spool._own.path.glob("*.seg"))) > 1
    assert drain(spool) == list(range(200))
    assert spool.empty
    assert spool.size_bytes == 0


def test_disk_is_given_back_when_all_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MAX)
    for begin in (0, 50):
        spool.append([record(n) for n in range(begin, begin + 50)])
        assert drain(spool) == list(range(begin, begin + 50))
        assert not list(spool._own.path.glob("*.seg"))
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_it_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 4_096)
    written = spool.append([record(n, 100) for n in range(100)])
    assert 0 < written < 100
    assert spool.size_bytes <= 4_096
    assert spool.append([record(1, 100)]) == 0
    assert drain(spool) == list(range(written))
    assert spool.append([record(1, 100)]) == 1


def test_what_is_not_committed_comes_again_after_a_crash(tmp_path: Path) -> None:
    first = Spool(tmp_path, MAX)
    first.append([record(n) for n in range(10)])
    first.read(4, MAX)
    first.commit()
    first.read(3, MAX)
    abandon(first)
    second = Spool(tmp_path, MAX)
    assert not second.empty
    assert drain(second) == list(range(4, 10))
    assert second.empty
    assert not first._own.path.exists()


def test_a_living_owner_keeps_its_folder(tmp_path: Path) -> None:
    first = Spool(tmp_path, MAX)
    first.append([record(1)])
    second = Spool(tmp_path, MAX)
    assert second.empty
    assert second.adopt() == 0
    abandon(first)
    assert second.adopt() == 1
    assert drain(second) == [1]


def test_left_behind_goes_before_own_oldest_first(tmp_path: Path) -> None:
    spools = [Spool(tmp_path, MAX) for _ in range(3)]
    for index, spool in enumerate(spools):
        spool.append([record(index)])
    for spool in reversed(spools):
        abandon(spool)
    last = Spool(tmp_path, MAX)
    last.append([record(9)])
    assert drain(last) == [0, 1, 2, 9]


@pytest.mark.parametrize("cut", [1, 5, 11, 20])
def test_a_torn_tail_loses_only_the_torn_record(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    first = Spool(tmp_path, MAX)
    first.append([record(n) for n in range(5)])
    segment = only_segment(first)
    abandon(first)
    os.truncate(segment, segment.stat().st_size - cut)
    assert drain(Spool(tmp_path, MAX)) == [0, 1, 2, 3]
    assert "damaged" in caplog.text


@pytest.mark.parametrize("what", ["payload", "length", "mark"])
def test_damage_in_the_middle_loses_only_what_it_hit(tmp_path: Path, what: str) -> None:
    first = Spool(tmp_path, MAX)
    first.append([record(n, 50) for n in range(5)])
    segment = only_segment(first)
    abandon(first)
    data = bytearray(segment.read_bytes())
    at = 2 * (len(data) // 5)
    if what == "payload":
        data[at + 30] ^= 0xFF
    elif what == "length":
        data[at + 4 : at + 8] = struct.pack(">I", 2**31)
    else:
        data[at] ^= 0xFF
    segment.write_bytes(data)
    second = Spool(tmp_path, MAX)
    assert drain(second) == [0, 1, 3, 4]
    assert second.empty


def test_garbage_in_place_of_a_position_or_a_segment_is_survived(tmp_path: Path) -> None:
    first = Spool(tmp_path, MAX)
    first.append([record(n) for n in range(3)])
    abandon(first)
    (first._own.path / "position").write_text("not numbers")
    (first._own.path / "00000009.seg").write_bytes(b"\x00" * 3_000)
    assert drain(Spool(tmp_path, MAX)) == [0, 1, 2]


def test_a_record_larger_than_a_read_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64 * MAX)
    spool.append([record(0, 3 * MAX), record(1)])
    records, _ = spool.read(10, 1_000)
    assert numbers(records)[0] == 0
    assert len(records[0].value or b"") > 3 * MAX


def test_a_write_that_fails_half_way_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, MAX)
    spool.append([record(0)])
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        write(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        spool.append([record(1)])
    monkeypatch.undo()
    spool.append([record(2)])
    assert drain(spool) == [0, 2]
    assert spool.damaged_bytes == 0


def test_a_folder_that_can_not_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="spool_dir"):
        Spool(tmp_path / "file" / "x", MAX)
