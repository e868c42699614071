"""Web servers through the proxies that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name."""

from __future__ import annotations

from typing import Any

from aiohttp import ClientTimeout
from fsspec.implementations.http import HTTPFileSystem

TIMEOUT = ClientTimeout(total=None, sock_connect=30.0, sock_read=60.0)
"""Time limits of a request: to connect, and between two packets of an answer, however large the file is."""


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's client of web servers, with the proxies of the environment and without compression."""

    def __init__(
        self,
        *args: Any,
        client_kwargs: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            *args,
            client_kwargs={"trust_env": True, "timeout": TIMEOUT} | (client_kwargs or {}),
            headers=(headers or {}) | {"Accept-Encoding": "identity"},  # a range of compressed bytes cannot be read
            **options,
        )
