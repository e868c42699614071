"""S3, with a metadata service that is throttled for a moment."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, NoCredentialsError
from s3fs import S3FileSystem

from pipeline.errors import ConfigError
from pipeline.storage.drivers.errors import http_status, is_about_keys

METADATA_SERVICE = "http://169.254.169.254"
CONTAINER_SERVICE = "http://169.254.170.2"


class S3Files(S3FileSystem):  # type: ignore[misc]
    """s3fs's file system."""

    session: Any

    async def set_session(self, refresh: bool = False, kwargs: dict[str, Any] | None = None) -> Any:
        """Connect. OSError, which is tried again, if there is a metadata service that gives no credentials just now."""
        if self.session is None:
            try:
                self.session, self._session_is_owned = AioSession(**self.kwargs), True
            except TypeError as error:  # its text has the name of the option
                raise ConfigError(f"s3:// has no such storage option: {error}") from None
        # ask before there is a client, which would stay without credentials
        if self.anon or self.key or await self.session.get_credentials() is not None:
            return await super().set_session(refresh=refresh, kwargs=kwargs or {})
        if _metadata_service_answers():
            raise OSError(errno.EBUSY, f"{NoCredentialsError.fmt}: the metadata service of this machine gives none now")
        raise NoCredentialsError

    _connect = set_session

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Make a request. If its keys are refused, look for new ones once: files and variables may have changed."""
        used = self.session
        try:
            return await super()._call_s3(method, *arguments, **options)
        except (OSError, ClientError) as error:
            if self.key or self.anon or not is_about_keys(error):
                raise
        if self.session is used:  # no other request has done so meanwhile
            self.session = None
            await self.set_session(refresh=True)
        return await super()._call_s3(method, *arguments, **options)

    async def _info(self, path: str, *args: Any, **options: Any) -> Any:
        """Facts of a file or folder. An error has the store's own words."""
        used = self.session
        try:
            return await super()._info(path, *args, **options)
        except OSError as error:
            if http_status(error) not in (400, 403):
                raise
            await self._raise_reason(path)
            if self.session is used:
                raise
        return await super()._info(path, *args, **options)  # with new keys

    async def _raise_reason(self, path: str) -> None:
        """Raise what the store says to a GET: the answer to a HEAD, which asks for facts, has no text."""
        bucket, key, _ = self.split_path(path)
        try:
            if key:
                answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")
                answer["Body"].close()
            else:
                await self._call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except FileNotFoundError:
            return


def _metadata_service_answers() -> bool:
    """Return whether something listens where this machine's metadata service would be."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    url = urlsplit(
        os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        or (CONTAINER_SERVICE if os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") else "")
        or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        or METADATA_SERVICE
    )
    try:
        socket.create_connection((url.hostname or "", url.port or 80), timeout=1.0).close()
    except OSError:
        return False
    return True
