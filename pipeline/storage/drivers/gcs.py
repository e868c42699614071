"""Google Cloud Storage with short retries of its own: gcsfs tries for 35 s, and prints each failure."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from aiohttp import ClientTimeout
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from pipeline.storage.drivers.errors import http_status, is_transient

TRIES = 3
TIMEOUT = ClientTimeout(total=None, sock_connect=30.0, sock_read=60.0)
"""Time limits of a request: to connect, and between two packets of an answer."""
_request_once = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)


class GoogleFiles(GCSFileSystem):  # type: ignore[misc]
    """gcsfs's file system. Its class for hierarchical buckets is left out: it asks a second service about each bucket."""

    def __init__(self, *args: Any, session_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, session_kwargs={"timeout": TIMEOUT} | (session_kwargs or {}), **options)

    async def _request(self, *args: Any, **options: Any) -> Any:
        """One request, and two more if the server is busy. A server that cannot be reached is an error at once."""
        for attempt in range(TRIES):
            try:
                return await _request_once(self, *args, **options)
            except HttpError as error:
                if http_status(error) is None or not is_transient(error) or attempt == TRIES - 1:
                    raise
            except ValueError as error:  # gcsfs calls some answers 400 so
                raise OSError(errno.EINVAL, f"400 {error}") from error
            await asyncio.sleep(2.0**attempt)
        raise AssertionError
