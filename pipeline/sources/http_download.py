"""Downloads that rows of manifests ask for. Whoever wrote a manifest may not reach the network that the job runs in.

The check is made on the address that is connected to, for every redirect anew: names may resolve to anything, differently
each time, and addresses can be spelled in many ways.
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
from pipeline.sources.url_policy import check_http, parsed
from pipeline.storage.retry import retried
from pipeline.storage.urls import FileFacts

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 60.0
DOWNLOAD_TIMEOUT_S = 3600.0
"""A server that drips a file byte by byte must not hold the job for ever."""
CHUNK_BYTES = 1 << 20
PRIVATE = "not a public address:"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last 32 bits are the IPv4 address that is really reached."""


def download(url: str, fd: int, max_bytes: int, private_hosts: tuple[str, ...] | None) -> FileFacts:
    """Write what ``url`` gives to the empty file ``fd``; its size and entity tag. Tried again while it may help.

    ``private_hosts``: hosts that may have private addresses; None: all. Rejected for an address that may not be
    reached, a file that is too large and a server that takes too long; else the client's or the server's last error.
    """

    def attempt() -> FileFacts:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        return asyncio.run(_download(url, fd, max_bytes, private_hosts))

    return retried(attempt)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, through whatever form of IPv6 it is reached."""
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


async def _download(url: str, fd: int, max_bytes: int, private_hosts: tuple[str, ...] | None) -> FileFacts:
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT_S) as clock:
            place = parsed(url)
            for _ in range(MAX_REDIRECTS + 1):
                restricted = private_hosts is not None and (place.host or "").lower() not in private_hosts
                async with _session(restricted) as session, _answer(session, place) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _receive(response, fd, max_bytes)
                    place = place.join(parsed(response.headers.get("Location", ""), relative=True))
                    check_http(place)
    except TimeoutError:
        if clock.expired():
            raise Rejected("fetch", "timeout", f"the download took more than {DOWNLOAD_TIMEOUT_S:.0f} s") from None
        raise
    raise Rejected("fetch", "http_error", f"more than {MAX_REDIRECTS} redirects")


def _session(restricted: bool) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver(), socket_factory=_public_socket if restricted else None
    )
    # compressed content would grow on arrival, beyond what its length says
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, headers={"Accept-Encoding": "identity"}
    )


def _public_socket(address_info: Any) -> socket.socket:
    """The socket for a connection, unless its address is not public."""
    family, kind, protocol, _, address = address_info
    if not is_public(address[0]):
        # the client takes nothing but an OSError for a reason to try a name's next address
        raise OSError(errno.EACCES, f"{PRIVATE} {address[0]}")
    return socket.socket(family=family, type=kind, proto=protocol)


@contextlib.asynccontextmanager
async def _answer(session: aiohttp.ClientSession, place: URL) -> AsyncIterator[aiohttp.ClientResponse]:
    """The server's answer; Rejected where the URL may not be asked."""
    try:
        response = await session.get(place, allow_redirects=False)
    except aiohttp.InvalidURL:
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    except aiohttp.ClientConnectorError as error:
        if PRIVATE not in str(error.os_error):
            raise
        message = f"{place.host} has no public address; --allow-host permits a host that manifests may name"
        raise Rejected("fetch", "forbidden_url", message) from None
    async with response:
        yield response


async def _receive(response: aiohttp.ClientResponse, fd: int, max_bytes: int) -> FileFacts:
    response.raise_for_status()
    if response.status != 200:
        raise Rejected("fetch", "http_error", f"the server answered {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Rejected("fetch", "http_error", "the server sends the file compressed, though asked not to")
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
