"""Downloads items over HTTP without letting a manifest's author reach the network that the job runs in.

The address of every connection is checked, redirects included. Checking the host's name would not be enough: it may
resolve to another address each time, and an address can be spelled in many ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from yarl import URL

from pipeline.errors import Rejected
from pipeline.sources.url_policy import check_http, parse_url
from pipeline.storage.retry import retried
from pipeline.storage.urls import FileFacts

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 60.0
"""Time limit between two packets of an answer."""
DOWNLOAD_TIMEOUT_S = 3600.0
"""Time limit of a whole download, against servers that send a file byte by byte."""
CHUNK_BYTES = 1 << 20
PRIVATE = "not a public address:"
"""Start of the text of the error that refuses a private address."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that are translated to the IPv4 address in their last 32 bits."""


def download(url: str, fd: int, max_bytes: int, private_hosts: tuple[str, ...] | None) -> FileFacts:
    """Write the file at ``url`` to the empty file ``fd``, with retries. Returns its size and entity tag.

    ``private_hosts``: hosts that may have private addresses; None allows all hosts. Rejected if the address may not be
    reached, the file is too large or the download takes too long. Otherwise raises the last attempt's error.
    """

    def attempt() -> FileFacts:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        return asyncio.run(_follow_redirects(url, fd, max_bytes, private_hosts))

    return retried(attempt)


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public Internet. Looks at the IPv4 address inside an IPv6 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def _follow_redirects(url: str, fd: int, max_bytes: int, private_hosts: tuple[str, ...] | None) -> FileFacts:
    """One attempt at a download, through up to ``MAX_REDIRECTS`` redirects."""
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT_S) as deadline:
            target = parse_url(url)
            for _ in range(MAX_REDIRECTS + 1):
                restricted = private_hosts is not None and (target.host or "").lower() not in private_hosts
                async with _session(restricted) as session, _get(session, target) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _receive(response, fd, max_bytes)
                    target = target.join(parse_url(response.headers.get("Location", ""), relative=True))
                    check_http(target)
    except TimeoutError:
        if deadline.expired():
            raise Rejected("fetch", "timeout", f"the download took more than {DOWNLOAD_TIMEOUT_S:.0f} s") from None
        raise
    raise Rejected("fetch", "http_error", f"more than {MAX_REDIRECTS} redirects")


def _session(restricted: bool) -> aiohttp.ClientSession:
    """An HTTP client. If ``restricted``, it connects to public addresses only."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver(), socket_factory=_public_socket if restricted else None
    )
    # compressed content could grow beyond its Content-Length
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, headers={"Accept-Encoding": "identity"}
    )


def _public_socket(address_info: Any) -> socket.socket:
    """The socket for a connection. OSError if its address is not public."""
    family, socket_type, protocol, _, address = address_info
    if not is_public(address[0]):
        # the client tries a name's next address only after an OSError
        raise OSError(errno.EACCES, f"{PRIVATE} {address[0]}")
    return socket.socket(family=family, type=socket_type, proto=protocol)


@contextlib.asynccontextmanager
async def _get(session: aiohttp.ClientSession, target: URL) -> AsyncIterator[aiohttp.ClientResponse]:
    """The server's answer to a GET. Rejected if the URL may not be requested."""
    try:
        response = await session.get(target, allow_redirects=False)
    except (aiohttp.InvalidURL, UnicodeError):  # UnicodeError: a label of the host's name is empty or too long
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    except aiohttp.ClientConnectorError as error:
        if PRIVATE not in str(error.os_error):
            raise
        message = f"{target.host} has no public address; to allow the host, give it to --allow-host"
        raise Rejected("fetch", "forbidden_url", message) from None
    async with response:
        yield response


async def _receive(response: aiohttp.ClientResponse, fd: int, max_bytes: int) -> FileFacts:
    """Write the body of an answer to ``fd``. Rejected if it is not one plain file of at most ``max_bytes``."""
    response.raise_for_status()
    if response.status != 200:
        raise Rejected("fetch", "http_error", f"the server answered {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Rejected(
            "fetch", "http_error", "the server sent the file compressed, although the request did not allow it"
        )
    if (response.content_length or 0) > max_bytes:
        raise Rejected(
            "fetch", "too_large", f"{response.content_length} bytes; the limit is {max_bytes} (--max-item-gb)"
        )
    size_bytes = 0
    with open(fd, "wb", closefd=False) as file:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise Rejected("fetch", "too_large", f"more than {max_bytes} bytes (--max-item-gb)")
            file.write(chunk)
    return FileFacts.of({"size": size_bytes, "ETag": response.headers.get("ETag")})
