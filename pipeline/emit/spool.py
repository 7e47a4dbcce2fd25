"""The spool: records on disk, in order, waiting for the broker. One owner thread; other processes keep out
by a file lock.

    spool_dir/<owner>/lock            held (flock) as long as the owner lives; a folder nobody holds was left behind
                      position       segment and offset up to which everything is delivered
                      00000001.seg   append-only frames (see `frames`)

A left-behind folder is taken over at start and every so often, and is sent before anything newer. What was read is
forgotten only by `commit`, so a crash sends some records again (same event ids) and loses none that were written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from pipeline.emit import frames
from pipeline.emit.buffer import Outgoing
from pipeline.model.errors import ConfigurationError

log = logging.getLogger("pipeline.emit")

_POSITION = "position"
_NEW = ".new-"
_CHUNK_BYTES = 1024 * 1024


class Folder:
    """One owner's segments. `damaged_bytes` counts what could not be read back."""

    def __init__(self, path: Path, lock: int, segment_bytes: int) -> None:
        self.path = path
        self.damaged_bytes = 0
        self.unsynced = False
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._segments = sorted(int(item.stem) for item in path.glob("*.seg"))
        self._sizes = {number: self._file(number).stat().st_size for number in self._segments}
        self._writer: int | None = None
        self._reader: tuple[int, int] | None = None
        self._committed = self._read_position()
        self._at = self._committed

    @property
    def size_bytes(self) -> int:
        """Bytes not yet committed."""
        segment, offset = self._committed
        return sum(self._sizes[n] - (offset if n == segment else 0) for n in self._segments if n >= segment)

    @property
    def drained(self) -> bool:
        """Everything written has been read and committed."""
        return self._at == self._committed and self._read_to_end()

    @property
    def uncommitted(self) -> bool:
        """Something was read and not committed."""
        return self._at != self._committed

    def append(self, data: bytes) -> None:
        """Write whole frames. Raises OSError, and then nothing of `data` stays."""
        number = self._segments[-1] if self._segments else 0
        if self._writer is None or self._sizes[number] >= self._segment_bytes:
            number = self._open_segment(number + 1)
        assert self._writer is not None
        start = self._sizes[number]
        self.unsynced = True
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._writer, view) :]
        except OSError:
            os.ftruncate(self._writer, start)
            raise
        self._sizes[number] = start + len(data)

    def read(self, max_records: int, max_bytes: int) -> list[Outgoing]:
        """The next records after what was read before; fewer than asked at the end."""
        found: list[Outgoing] = []
        budget = max_bytes
        while len(found) < max_records and budget > 0 and not self._read_to_end():
            batch, used = self._read_some(max_records - len(found), budget)
            found += batch
            budget -= used
        return found

    def rewind(self) -> None:
        """Read again from what was committed."""
        self._at = self._committed

    def commit(self) -> None:
        """Everything read so far is delivered: remember, and delete segments that are done."""
        self._committed = self._at
        segment, offset = self._committed
        temporary = self.path / (_POSITION + ".tmp")
        temporary.write_text(f"{segment} {offset}\n")
        temporary.replace(self.path / _POSITION)
        for number in [n for n in self._segments if n < segment]:
            self._forget(number)
        if self._read_to_end() and self._segments:  # start afresh, so that the disk is given back
            last = self._segments[-1]
            self._close_files()
            self._forget(last)
            self._committed = self._at = (last + 1, 0)

    def sync(self) -> None:
        """Everything written is on the disk itself."""
        if self._writer is not None and self.unsynced:
            os.fsync(self._writer)
        self.unsynced = False

    def close(self) -> None:
        """Give up the folder: removed when nothing is left in it, else left for the next publisher."""
        self.sync()
        self._close_files()
        if self.size_bytes <= 0:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:08d}.seg"

    def _open_segment(self, number: int) -> int:
        self.sync()
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
        number = max(number, self._committed[0])
        self._writer = os.open(self._file(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segments.append(number)
        self._sizes[number] = 0
        return number

    def _read_to_end(self) -> bool:
        segment, offset = self._at
        return all(n < segment or (n == segment and offset >= self._sizes[n]) for n in self._segments)

    def _read_some(self, max_records: int, max_bytes: int) -> tuple[list[Outgoing], int]:
        """Records of one chunk of one segment, and the bytes they took."""
        segment, offset = self._at
        if segment not in self._sizes or offset >= self._sizes[segment]:
            self._at = (min(n for n in self._segments if n > segment), 0)
            return [], 0
        descriptor = self._open_reader(segment)
        size, want = self._sizes[segment], min(max_bytes, _CHUNK_BYTES)
        while True:
            data = os.pread(descriptor, min(want, size - offset), offset)
            result = frames.scan(data, final=not data or offset + len(data) >= size, limit=max_records)
            if result.consumed or not data:
                break
            want *= 4
        consumed = result.consumed or size - offset
        self._report_damage(result.damaged_bytes or (0 if result.consumed else consumed), segment)
        self._at = (segment, offset + consumed)
        records = []
        for payload in result.payloads:
            try:
                records.append(frames.unpack(payload))
            except frames.BadFrame:
                self._report_damage(len(payload), segment)
        return records, consumed

    def _report_damage(self, count: int, segment: int) -> None:
        if count:
            self.damaged_bytes += count
            log.error("spool segment %s has %d damaged bytes that can't be sent", self._file(segment), count)

    def _open_reader(self, segment: int) -> int:
        if self._reader is None or self._reader[0] != segment:
            self._close_reader()
            self._reader = (segment, os.open(self._file(segment), os.O_RDONLY | os.O_CLOEXEC))
        return self._reader[1]

    def _close_reader(self) -> None:
        if self._reader is not None:
            os.close(self._reader[1])
            self._reader = None

    def _close_files(self) -> None:
        self._close_reader()
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def _forget(self, number: int) -> None:
        self._segments.remove(number)
        del self._sizes[number]
        self._file(number).unlink(missing_ok=True)

    def _read_position(self) -> tuple[int, int]:
        first = (self._segments[0] if self._segments else 1, 0)
        try:
            segment, offset = (int(part) for part in (self.path / _POSITION).read_text().split())
        except (OSError, ValueError):
            return first
        return max(first, (segment, offset))


class Spool:
    """Folders left behind by others, oldest first, then our own: read in that order, written only to our own."""

    def __init__(self, root: str | Path, max_bytes: int) -> None:
        self.root = Path(root)
        self.max_bytes = max_bytes
        self._segment_bytes = max(4_096, min(64 * 1024 * 1024, max_bytes // 8))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._own = self._make_own()
        except OSError as error:
            raise ConfigurationError(
                f"spool_dir={str(root)!r} can't be used: {error.strerror}; name a folder this process may write to."
            ) from None
        self._left: list[Folder] = []
        self._reading: Folder | None = None
        self.adopt()

    @property
    def size_bytes(self) -> int:
        """Bytes waiting in all folders we hold."""
        return sum(folder.size_bytes for folder in (*self._left, self._own))

    @property
    def empty(self) -> bool:
        """Nothing is waiting."""
        return not self._left and self._own.drained

    @property
    def damaged_bytes(self) -> int:
        """What could not be read back, of the folders we hold."""
        return sum(folder.damaged_bytes for folder in (*self._left, self._own))

    def adopt(self) -> int:
        """Take over what dead publishers left behind; returns how many folders."""
        taken = 0
        held = {folder.path for folder in (*self._left, self._own)}
        for path in sorted(self.root.iterdir()):
            if path in held or path.name.startswith(_NEW) or not (path / "lock").exists():
                continue
            lock = _try_lock(path / "lock")
            if lock is None:
                continue
            try:
                folder = Folder(path, lock, self._segment_bytes)
            except OSError as error:
                os.close(lock)
                log.error("spool folder %s was left behind and can't be read: %s", path, error.strerror)
                continue
            if folder.drained:
                folder.close()
                continue
            log.warning("spool folder %s was left behind with %d bytes: sending it", path, folder.size_bytes)
            self._left.append(folder)
            taken += 1
        return taken

    def append(self, records: Sequence[Outgoing]) -> int:
        """Write records in order; returns how many fit. Raises OSError when the disk refuses."""
        room = self.max_bytes - self.size_bytes
        packed: list[bytes] = []
        for record in records:
            frame = frames.pack(record)
            room -= len(frame)
            if room < 0:
                break
            packed.append(frame)
        if packed:
            self._own.append(b"".join(packed))
        return len(packed)

    def read(self, max_records: int, max_bytes: int) -> tuple[list[Outgoing], bool]:
        """The next records, and whether they are this publisher's own (so that their numbers mean something)."""
        while self._left:
            folder = self._left[0]
            records = folder.read(max_records, max_bytes)
            if records:
                self._reading = folder
                return records, False
            folder.commit()
            self._reading = None
            self._left.pop(0).close()
        self._reading = self._own
        return self._own.read(max_records, max_bytes), True

    def commit(self) -> None:
        """What was read last is delivered."""
        if self._reading is not None:
            self._reading.commit()

    @property
    def uncommitted(self) -> bool:
        """Something was read since the last `commit`."""
        return self._reading is not None and self._reading.uncommitted

    @property
    def unsynced(self) -> bool:
        """Something was written since the last `sync`."""
        return self._own.unsynced

    def sync(self) -> None:
        """Everything written is on the disk itself."""
        self._own.sync()

    def close(self) -> None:
        """Give up every folder; those that still hold records stay for the next publisher."""
        for folder in (*self._left, self._own):
            folder.close()
        self._left.clear()

    def _make_own(self) -> Folder:
        name = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}"  # sorts by age
        fresh = self.root / (_NEW + name)
        fresh.mkdir(mode=0o700)
        lock = _try_lock(fresh / "lock")
        if lock is None:
            raise ConfigurationError(
                f"spool_dir={str(self.root)!r} does not support file locks; name a folder on a local disk."
            )
        path = fresh.rename(
            self.root / name
        )  # under its final name it is locked already: nobody takes it for left behind
        return Folder(path, lock, self._segment_bytes)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None when another process does (or the folder has gone)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
