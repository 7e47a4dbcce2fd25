"""Blob stores: a folder, and whatever fsspec has an implementation for."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.model.blobs import BlobStore
from pipeline.model.errors import ConfigurationError


def open_store(url: str) -> BlobStore:
    """`file:///path` or a plain path: a folder, made when it is missing. Else `s3://bucket/prefix` and the like, through fsspec (the
    extra `blobs`, and the package of that scheme). Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme == "file" or "://" not in url:
        from pipeline.blobs.folder import FolderBlobs

        if parts.netloc:
            raise ConfigurationError(
                f"PIPELINE_BLOBS={url} names the host {parts.netloc}: write file:/// and the path of a folder"
            )
        return FolderBlobs(Path(url2pathname(parts.path) if parts.scheme == "file" else url))
    from pipeline.blobs.by_fsspec import FsspecBlobs

    return FsspecBlobs(url)
