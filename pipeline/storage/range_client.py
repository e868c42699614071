"""Reads ranges of remote files: through obstore if it is installed, because it needs less CPU time, or fsspec."""

from __future__ import annotations

import asyncio
import datetime
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.errors import describe_error, http_status, is_transient
from pipeline.storage.drivers.waits import requests_to
from pipeline.storage.retry import retried
from pipeline.storage.store import Store
from pipeline.storage.urls import HTTP_SCHEMES, check_inside

ReadRange = Callable[[str, int, int], memoryview]
VARIABLE = "LATENTMILL_RANGE_CLIENT"
"""Environment variable that names the client: ``obstore``, ``fsspec``, or ``auto`` for obstore where it works."""
CLIENTS = ("auto", "obstore", "fsspec")
CREDENTIALS_LAST = datetime.timedelta(minutes=5)
"""Time after which obstore asks for credentials again."""
TIMEOUTS: dict[str, Any] = {"connect_timeout": "10s", "timeout": "60s"}
"""Time limits of one request, which reads at most some megabytes."""
REFUSALS = (
    "not supported",
    "non-partial response",
    "Content-Range",
    "Content-Length Header missing",
    "certificate",
    "UnknownIssuer",
)
"""Words of obstore's errors for answers that fsspec's clients may accept: without a status, length or authority it knows."""

KEY_REFUSALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId")
"""Words of obstore's errors for keys that fsspec's client can renew."""
FIRST_PATIENCE_S = 3.0
"""Time after which a connection that obstore cannot use is tried by fsspec's client, where both may be used."""

_obstore_pid: int | None = None
"""The process that used obstore first, in this process or in one that it was forked from."""


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
    if installed and wanted != "fsspec" and not _may_use_obstore():
        if wanted == "obstore":
            raise ConfigError(
                f"{VARIABLE} is 'obstore', which cannot be used in a forked process after its parent has read with it; "
                f"start workers with multiprocessing_context='spawn', or set {VARIABLE}=auto"
            )
        installed = False
    client = _client(store) if installed and wanted != "fsspec" else None
    if client is None:
        return _through_fsspec(store)
    patient = _through_obstore(client, store.url)
    if wanted == "obstore":
        return patient
    return _with_fallback(_through_obstore(client, store.url, FIRST_PATIENCE_S), patient, _through_fsspec(store))


def _may_use_obstore() -> bool:
    """Return whether no process that this one was forked from has used obstore, whose threads a fork does not copy."""
    global _obstore_pid
    if _obstore_pid is None:
        _obstore_pid = os.getpid()
    return _obstore_pid == os.getpid()


def _with_fallback(first: ReadRange, patient: ReadRange, second: ReadRange) -> ReadRange:
    """Read through the first client until it refuses an answer that the second one takes, and then through that.

    patient: the first client, waiting out an outage in which the server still answers with a status.
    """
    current = first

    def request(path: str, offset: int, length: int) -> memoryview:
        nonlocal current
        used = current  # another thread may change it meanwhile
        try:
            return used(path, offset, length)
        except StoreError as error:
            words = str(error.__cause__)
            broken = error.__cause__ is not None and is_transient(error.__cause__)
            if used is not second and broken and http_status(error.__cause__ or error) is not None:
                return patient(path, offset, length)
            renew = any(word in words for word in KEY_REFUSALS)
            if used is second or not (renew or broken or any(word in words for word in REFUSALS)):
                raise
        data = second(path, offset, length)
        if not renew:  # obstore asks for the renewed keys within minutes
            current = second
        return data

    return request


def _through_fsspec(store: Store) -> ReadRange:
    return lambda path, offset, length: memoryview(store.read_range(path, offset, length))


def _through_obstore(client: Any, url: str, longest_s: float | None = None) -> ReadRange:
    import obstore
    from obstore.exceptions import BaseError

    def request(path: str, offset: int, length: int) -> memoryview:
        try:
            with requests_to(f"{url}/{path}"):
                get = partial(obstore.get_range, client, path, start=offset, length=length)
                return memoryview(retried(get, longest_s=longest_s))
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            advice = f"; {VARIABLE}=fsspec reads without obstore"
            if "InvalidCertificate" in str(error):
                advice = (
                    f"; its certificate is not trusted ({'AWS_CA_BUNDLE' if url.startswith('s3') else 'SSL_CERT_FILE'})"
                )
            elif is_transient(error):
                advice = ""
            raise StoreError(f"{url}/{path}: {describe_error(error)}{advice}") from error

    return request


def _client(store: Store) -> Any:
    """obstore's client for the store; None if it cannot reach the store in the same way as fsspec's client.

    obstore itself finds HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the environment.
    """
    from obstore.store import HTTPStore, S3Store

    fs, _ = store.client
    scheme, _, location = store.url.partition("://")
    retries: Any = {"max_retries": 0}
    options: Any
    if scheme in HTTP_SCHEMES and store.connection.is_plain:
        options = {**TIMEOUTS, "allow_http": True, **_authorities(os.environ.get("SSL_CERT_FILE"))}
        return HTTPStore.from_url(store.url, client_options=options, retry_config=retries)
    if scheme != "s3":
        return None
    client = fs.connect()
    bucket, _, prefix = location.partition("/")
    endpoint = client.meta.endpoint_url
    aws = ".amazonaws.com" in endpoint
    options = {
        **TIMEOUTS,
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
