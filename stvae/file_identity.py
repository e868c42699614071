"""Tell whether a file is still the same one: the hash of its content, or what fsspec reports about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, BinaryIO

CONTENT_KEYS = (
    "ETag",  # S3, HTTP
    "etag",  # Azure, Google Cloud Storage
    "md5Hash",  # Google Cloud Storage
    "generation",  # Google Cloud Storage
    "blob_id",  # Hugging Face repositories
    "xet_hash",  # Hugging Face buckets
)
"""Keys whose value changes with the content of a file, in the order of preference."""
TIME_KEYS = ("mtime", "last_modified", "LastModified")
"""Keys that hold the time of the last write, used where a store reports no other version."""


def version_tag(info: Mapping[str, Any]) -> str:
    """Return a text that changes when the file does; empty if the store reports nothing that tells versions apart.

    ``info`` is an entry of fsspec's ``info``, ``ls`` or ``find``. Tags are compared with recorded ones, so a store's tag
    must not change between releases: add new keys behind those that the store reports already.
    """
    lfs = info.get("lfs")  # Hugging Face's pointer to a large file
    lfs_sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else None
    values = [*(info.get(key) for key in CONTENT_KEYS), lfs_sha256, *(info.get(key) for key in TIME_KEYS)]
    return str(next((value for value in values if value), "")).strip('"')


def sha256_digest(file: BinaryIO) -> bytes:
    """Hash the rest of an open file. Holds one megabyte of it in memory."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()
