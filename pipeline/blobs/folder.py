"""Blobs in a folder that all processes share: one file each."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from pipeline.model.errors import BlobError, BlobMissing, ConfigurationError

PARTIAL = ".partial"


class FolderBlobs:
    """A `BlobStore`. A file is written beside its place and moved there when it is on the disk, so that nobody reads half of one."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser()
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"PIPELINE_BLOBS: the folder {root} can't be made: {error.strerror}") from error

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise BlobError(f"blob {name} can't be written: {error.strerror}") from error

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(f"blob {name} is not there: it was deleted, or this is another store") from None
        except OSError as error:
            raise BlobError(f"blob {name} can't be read: {error.strerror}") from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise BlobError(f"blob {name} can't be deleted: {error.strerror}") from error
        for folder in path.parents:
            if folder == self._root:
                return
            try:
                folder.rmdir()
            except OSError:  # it has others
                return

    def _path(self, name: str) -> Path:
        """Never outside of the folder, whatever a record says."""
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise BlobError(f"{name!r:.200} is no name of a blob")
        return self._root.joinpath(*parts)
