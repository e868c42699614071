"""Reads ranges of remote files: through obstore if it is installed, because it needs less CPU time, or fsspec."""

from __future__ import annotations

import asyncio
import datetime
import importlib.util
from collections.abc import Callable
from typing import Any

from pipeline.errors import StoreError
from pipeline.storage.retry import TRIES
from pipeline.storage.store import Store
from pipeline.storage.urls import without_secrets

ReadRange = Callable[[str, int, int], memoryview]
CREDENTIALS_LAST = datetime.timedelta(minutes=5)
"""Time after which obstore asks for credentials again."""


class _NoLengthError(Exception):
    """obstore does not take a web server's answers, because they have no ``Content-Length``."""


def open_ranges(store: Store) -> ReadRange:
    """A function that reads the bytes at (path, offset, length) in one request. It is thread-safe.

    It raises StoreError. obstore is used for S3 and web servers, with the address and credentials of fsspec's client.
    """
    client = _client(store) if importlib.util.find_spec("obstore") else None
    request = _through_fsspec(store) if client is None else _through_obstore(client, store.url)

    def read(path: str, offset: int, length: int) -> memoryview:
        nonlocal request
        try:
            try:
                data = request(path, offset, length)
            except _NoLengthError:
                request = _through_fsspec(store)
                data = request(path, offset, length)
        except FileNotFoundError as error:
            raise StoreError(f"{store.url}/{path} is gone; was the output moved while it was read?") from error
        if len(data) != length:
            raise StoreError(f"{store.url}/{path} ends before byte {offset + length}, which the index names")
        return data

    return read


def _through_fsspec(store: Store) -> ReadRange:
    return lambda path, offset, length: memoryview(store.read_range(path, offset, length))


def _through_obstore(client: Any, url: str) -> ReadRange:
    import obstore
    from obstore.exceptions import BaseError

    def request(path: str, offset: int, length: int) -> memoryview:
        try:
            return memoryview(obstore.get_range(client, path, start=offset, length=length))
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            if "Content-Length Header missing" in str(error):
                raise _NoLengthError from error
            problem = without_secrets(str(error).partition(": <")[0])  # the server's page comes after the colon
            raise StoreError(f"{url}/{path}: {problem}") from error

    return request


def _client(store: Store) -> Any:
    """obstore's client for the store; None if it cannot reach the store in the same way as fsspec's client."""
    from obstore.store import HTTPStore, S3Store

    fs, root = store.client
    scheme, _, location = store.url.partition("://")
    retries: Any = {"max_retries": TRIES - 1}
    if scheme in ("http", "https") and root.rstrip("/") == store.url.rstrip("/"):
        return HTTPStore.from_url(store.url, client_options={"allow_http": True}, retry_config=retries)
    if scheme != "s3":
        return None
    client = fs.connect()
    bucket, _, prefix = location.partition("/")
    endpoint = client.meta.endpoint_url
    aws = ".amazonaws.com" in endpoint
    return S3Store(
        bucket,
        prefix=prefix,
        region=client.meta.region_name,
        **({} if aws else {"endpoint": endpoint, "virtual_hosted_style_request": False}),
        client_options={"allow_http": endpoint.startswith("http://")},
        retry_config=retries,
        **({"skip_signature": True} if fs.anon else {"credential_provider": lambda: _s3_credentials(fs)}),
    )


def _s3_credentials(fs: Any) -> Any:
    """The credentials that s3fs signs with: those it was given, or those that the AWS client finds and renews."""
    expires_at = datetime.datetime.now(datetime.UTC) + CREDENTIALS_LAST
    if fs.key:
        key, secret, token = fs.key, fs.secret, fs.token
    else:
        key, secret, token = asyncio.run_coroutine_threadsafe(_session_credentials(fs.session), fs.loop).result()
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": expires_at}


async def _session_credentials(session: Any) -> tuple[str, str, str | None]:
    credentials = await session.get_credentials()
    frozen = await credentials.get_frozen_credentials()
    return frozen.access_key, frozen.secret_key, frozen.token
