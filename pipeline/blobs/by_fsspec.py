"""Blobs in whatever fsspec has an implementation for: object stores, network file systems."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pipeline.model.errors import BlobError, BlobMissing, ConfigurationError


class FsspecBlobs:
    """A `BlobStore`. Credentials are those that the file system finds by itself, such as AWS's own variables. Raises ConfigurationError."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise ConfigurationError(
                'PIPELINE_BLOBS needs fsspec for such a URL: install the extra "blobs", and the package of the scheme (s3fs, gcsfs, adlfs)'
            ) from None
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"PIPELINE_BLOBS: fsspec can't open {url.partition('://')[0]}://: {error}"
            ) from error
        self._root = str(root).rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:  # it has folders, unlike object stores, where `makedirs` would make buckets
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)
        except Exception as error:  # each file system has its own
            raise _failed("written", name, error) from error

    def get(self, name: str) -> bytes:
        try:
            found: Any = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            raise BlobMissing(f"blob {name} is not there: it was deleted, or this is another store") from None
        except Exception as error:
            raise _failed("read", name, error) from error
        return bytes(found)

    def delete(self, name: str) -> None:
        try:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))
        except Exception as error:
            raise _failed("deleted", name, error) from error

    def _path(self, name: str) -> str:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise BlobError(f"{name!r:.200} is no name of a blob")
        return f"{self._root}/{name}"


def _failed(what: str, name: str, error: Exception) -> BlobError:
    return BlobError(f"blob {name} can't be {what}: {type(error).__name__}: {error}")
