"""Web servers through the proxies that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name."""

from __future__ import annotations

from typing import Any

from fsspec.implementations.http import HTTPFileSystem


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's client of web servers, with the proxies of the environment and without compression."""

    def __init__(self, *args: Any, client_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(
            *args,
            client_kwargs={"trust_env": True} | (client_kwargs or {}),
            **{"headers": {"Accept-Encoding": "identity"}} | options,  # a range of compressed bytes cannot be read
        )
