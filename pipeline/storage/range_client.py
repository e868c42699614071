"""Reads ranges of remote files: through obstore if it is installed, because it needs less CPU time, or fsspec."""

from __future__ import annotations

import asyncio
import datetime
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.errors import tidy
from pipeline.storage.retry import TRIES
from pipeline.storage.store import Store
from pipeline.storage.urls import HTTP_SCHEMES, check_inside

ReadRange = Callable[[str, int, int], memoryview]
VARIABLE = "LATENTMILL_RANGE_CLIENT"
"""Environment variable that names the client: ``obstore``, ``fsspec``, or ``auto`` for obstore where it works."""
CLIENTS = ("auto", "obstore", "fsspec")
CREDENTIALS_LAST = datetime.timedelta(minutes=5)
"""Time after which obstore asks for credentials again."""
REFUSALS = ("non-partial response", "Content-Range", "Content-Length Header missing", "certificate", "UnknownIssuer")
"""Words of obstore's errors for answers that fsspec's clients may accept: without a status, length or authority it knows."""


def open_ranges(store: Store) -> ReadRange:
    """A function that reads the bytes at (path, offset, length) in one request. It is thread-safe.

    It raises StoreError. obstore is used for S3 and web servers, with the address and credentials of fsspec's client, if
    ``LATENTMILL_RANGE_CLIENT`` does not choose another client.
    """
    request = _choose_client(store)

    def read(path: str, offset: int, length: int) -> memoryview:
        check_inside(path, store.url)
        try:
            data = request(path, offset, length)
        except FileNotFoundError as error:
            raise StoreError(f"{store.url}/{path} is gone; was the output moved while it was read?") from error
        if len(data) != length:
            raise StoreError(f"{store.url}/{path} ends before byte {offset + length}, which the index names")
        return data

    return read


def _choose_client(store: Store) -> ReadRange:
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in CLIENTS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CLIENTS)}, got '{wanted}'")
    installed = importlib.util.find_spec("obstore") is not None
    if wanted == "obstore" and not installed:
        raise ConfigError(f"{VARIABLE} is 'obstore', which is not installed: pip install 'obstore>=0.12,<0.13'")
    client = _client(store) if installed and wanted != "fsspec" else None
    if client is None:
        return _through_fsspec(store)
    through_obstore = _through_obstore(client, store.url)
    return through_obstore if wanted == "obstore" else _with_fallback(through_obstore, _through_fsspec(store))


def _with_fallback(first: ReadRange, second: ReadRange) -> ReadRange:
    """Read through the first client until it refuses an answer that the second one takes, and then through that."""
    current = first

    def request(path: str, offset: int, length: int) -> memoryview:
        nonlocal current
        used = current  # another thread may change it meanwhile
        try:
            return used(path, offset, length)
        except StoreError as error:
            if used is second or not any(words in str(error.__cause__) for words in REFUSALS):
                raise
        data = second(path, offset, length)
        current = second
        return data

    return request


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
            # the server's page comes after the colon, and the client's own structures after the empty line
            problem = tidy(str(error).partition(": <")[0].partition("\n\n")[0])
            advice = f"{VARIABLE}=fsspec reads without obstore"
            if "InvalidCertificate" in str(error):
                advice = (
                    f"its certificate is not trusted ({'AWS_CA_BUNDLE' if url.startswith('s3') else 'SSL_CERT_FILE'})"
                )
            raise StoreError(f"{url}/{path}: {problem}; {advice}") from error

    return request


def _client(store: Store) -> Any:
    """obstore's client for the store; None if it cannot reach the store in the same way as fsspec's client.

    obstore itself finds HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the environment.
    """
    from obstore.store import HTTPStore, S3Store

    fs, root = store.client
    scheme, _, location = store.url.partition("://")
    retries: Any = {"max_retries": TRIES - 1}
    options: Any
    if scheme in HTTP_SCHEMES and root.rstrip("/") == store.url.rstrip("/"):
        options = {"allow_http": True, **_authorities(os.environ.get("SSL_CERT_FILE"))}
        return HTTPStore.from_url(store.url, client_options=options, retry_config=retries)
    if scheme != "s3":
        return None
    client = fs.connect()
    bucket, _, prefix = location.partition("/")
    endpoint = client.meta.endpoint_url
    aws = ".amazonaws.com" in endpoint
    options = {
        "allow_http": endpoint.startswith("http://"),
        **_authorities(fs.session.get_config_variable("ca_bundle")),
    }
    return S3Store(
        bucket,
        prefix=prefix,
        region=client.meta.region_name,
        **({} if aws else {"endpoint": endpoint, "virtual_hosted_style_request": False}),
        client_options=options,
        retry_config=retries,
        **({"skip_signature": True} if fs.anon else {"credential_provider": lambda: _s3_credentials(fs)}),
    )


def _authorities(bundle: str | None) -> dict[str, Any]:
    """obstore's option for a file of certificate authorities to trust. A folder of them is left to fsspec's client."""
    return {"root_certificate": Path(bundle).read_bytes()} if bundle and Path(bundle).is_file() else {}


def _s3_credentials(fs: Any) -> Any:
    """The credentials that s3fs signs with: those it was given, or those that the AWS client finds and renews."""
    expires_at = datetime.datetime.now(datetime.timezone.utc) + CREDENTIALS_LAST
    if fs.key:
        key, secret, token = fs.key, fs.secret, fs.token
    else:
        key, secret, token = asyncio.run_coroutine_threadsafe(_session_credentials(fs.session), fs.loop).result()
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": expires_at}


async def _session_credentials(session: Any) -> tuple[str, str, str | None]:
    credentials = await session.get_credentials()
    frozen = await credentials.get_frozen_credentials()
    return frozen.access_key, frozen.secret_key, frozen.token
