"""Creates objects in a remote store only if they are absent, and aborts unfinished uploads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.storage.drivers.errors import error_code, http_status

PRECONDITION_FAILED = 412
"""HTTP status with which a store refuses to create what is there."""
PRECONDITION_CODES = ("PreconditionFailed", "412")
"""Codes of the same refusal in the answers of S3."""
SINGLE_REQUEST_BYTES = 256 << 20
"""Largest file that is created by one request, which every store with conditional requests does all or nothing.

Some stores check the condition of an upload in parts only when it begins, or never. s3fs would use parts from 100 MB on, and
holds ten of 50 MB in memory at a time.
"""
MAX_CAUSES = 5
"""Number of errors behind an error to look at."""


def create_object(fs: Any, path: str, content: bytes | Path) -> None:
    """Create an object by a conditional request.

    FileExistsError if it is there. FileNotFoundError if somebody aborted the upload in the meantime: try again.
    """
    try:
        if isinstance(content, Path) and content.stat().st_size <= SINGLE_REQUEST_BYTES:
            content = content.read_bytes()
        # a larger chunk, so that the driver does not cut it
        one_request = {} if isinstance(content, Path) else _one_request(fs)
        put_object(fs, path, content, mode="create", **one_request)
    except Exception as error:
        if not isinstance(error, FileExistsError) and is_there(error):
            raise FileExistsError(path) from error
        if getattr(error, "error_code", None) == "InvalidBlockList":
            # Azure drops the blocks of one upload when another upload creates the same object
            raise FileNotFoundError(path) from error
        raise


def put_object(fs: Any, path: str, content: bytes | Path, **options: Any) -> None:
    """Upload bytes or a local file."""
    if isinstance(content, Path):
        fs.put_file(str(content), path, **options)
    else:
        fs.pipe_file(path, content, **options)


def _one_request(fs: Any) -> dict[str, Any]:
    """Options with which a driver uploads bytes in one request."""
    return {"chunksize": SINGLE_REQUEST_BYTES + 1} if {"s3", "gs"} & set(fs.protocol) else {}


def is_there(error: BaseException) -> bool:
    """Return whether a store refused a conditional request because the object exists.

    s3fs only translates answers whose body names the condition, as that of AWS does. A driver whose cleanup fails after
    the refusal raises the later error.
    """
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return False
        if isinstance(cause, FileExistsError) or http_status(cause) == PRECONDITION_FAILED:
            return True
        if error_code(cause) in PRECONDITION_CODES:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def replaces_by_parts(fs: Any, path: str) -> bool:
    """Return whether an S3 store lets an upload in parts replace an object, although it refuses other uploads.

    ``path`` must name an object. It is uploaded again, as one part of one byte, on the condition that it is absent.
    """
    bucket, key, _ = fs.split_path(path)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    names = {"Bucket": bucket, "Key": key, "UploadId": upload}
    part = {"PartNumber": 1, "ETag": fs.call_s3("upload_part", PartNumber=1, Body=b"3", **names)["ETag"]}
    try:
        fs.call_s3("complete_multipart_upload", MultipartUpload={"Parts": [part]}, IfNoneMatch="*", **names)
    except Exception as error:
        if not is_there(error):
            raise
        with contextlib.suppress(Exception):  # a store may have dropped the upload, or the role may not abort one
            fs.call_s3("abort_multipart_upload", **names)
        return False
    return True


def abort_uploads(
    fs: Any, folder: str, retry: Callable[[Callable[[], Any]], Any], wanted: Callable[[str], bool]
) -> None:
    """Abort the unfinished uploads in parts below a folder of an S3 store whose path in the folder is ``wanted``."""
    bucket, prefix, _ = fs.split_path(folder.rstrip("/"))
    prefix = f"{prefix}/".lstrip("/")
    for upload in list(_unfinished(fs, bucket, prefix, retry)):
        if wanted(upload["Key"].removeprefix(prefix)):
            with contextlib.suppress(FileNotFoundError):  # it was completed or aborted in the meantime
                retry(partial(fs.abort_mpu, bucket, upload["Key"], upload["UploadId"]))


def _unfinished(
    fs: Any, bucket: str, prefix: str, retry: Callable[[Callable[[], Any]], Any]
) -> Iterator[dict[str, str]]:
    marker: dict[str, str] = {}
    while True:
        page = retry(partial(fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker))
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        if after == marker:
            return
        marker = after
