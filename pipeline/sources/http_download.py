"""Downloads items over HTTP without letting a manifest's author reach the network that the job runs in.

The address of every connection is checked, redirects included. Checking the host's name would not be enough: it may
resolve to another address each time, and an address can be spelled in many ways.

A proxy resolves names itself, so a row is fetched through one only if the user trusts it (``--trust-proxy``). What the
user named is fetched through the proxies of the environment anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from pipeline.errors import ConfigError, Rejected
from pipeline.sources.url_policy import check_http, parse_url
from pipeline.storage.drivers.options import options_for
from pipeline.storage.drivers.waits import requests_to
from pipeline.storage.held_file import HeldFile
from pipeline.storage.retry import SHORT_PATIENCE_S, retried
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, canonical

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 60.0
"""Time limit between two packets of an answer."""
DOWNLOAD_TIMEOUT_S = 3600.0
"""Time limit of a whole download, against servers that send a file byte by byte."""
CHUNK_BYTES = 1 << 20
LOCAL_NAMES = ("localhost", "metadata")
LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".svc")
"""Names that are not sent to a proxy, which would find a private address."""
PRIVATE = "not a public address:"
"""Start of the text of the error that refuses a private address."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that are translated to the IPv4 address in their last 32 bits."""
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # the host of a virtual machine on Azure
        "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is a metadata service
        "192.88.99.0/24",  # formerly 6to4 relays
        "64:ff9b:1::/48",  # translation within a network
        "100:0:0:1::/64",  # dummy addresses
        "2001::/23",  # IETF protocol assignments
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
)
"""Networks that lead to no public server, although Python's tables call some of them global."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Hosts that a download may connect to, and how."""

    private_hosts: tuple[str, ...] | None = None
    """Hosts that may have private addresses; None allows all hosts."""
    proxies: bool = True
    """Use the proxies of the environment. They resolve names, so the addresses of names are not checked."""


def download(url: str, file: HeldFile, max_bytes: int, reach: Reach) -> FileFacts:
    """Write the file at ``url`` to ``file``, with retries. Returns its size and entity tag.

    Rejected if the address may not be reached, the file is too large or the download takes too long. Otherwise raises
    the last attempt's error.
    """

    def attempt() -> FileFacts:
        file.empty()
        return asyncio.run(_follow_redirects(url, file, max_bytes, reach))

    with requests_to(canonical(url)):
        return retried(attempt, longest_s=SHORT_PATIENCE_S)


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
    if any(ip in network for network in SPECIAL):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def proxy_of(url: URL) -> URL | None:
    """The proxy that the environment names for a URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY); None without one."""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass_environment(url.host or "", proxies):  # type: ignore[attr-defined]
        return None
    found = URL(proxy)
    if found.scheme not in HTTP_SCHEMES:
        raise ConfigError(f"{url.scheme.upper()}_PROXY is a '{found.scheme}://' URL; expected http:// or https://")
    return found


async def _follow_redirects(url: str, file: HeldFile, max_bytes: int, reach: Reach) -> FileFacts:
    """One attempt at a download, through up to ``MAX_REDIRECTS`` redirects."""
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT_S) as deadline:  # type: ignore[attr-defined]  # Python 3.11
            target = parse_url(url)
            for _ in range(MAX_REDIRECTS + 1):
                host = (target.host or "").lower()
                restricted = reach.private_hosts is not None and host not in reach.private_hosts
                proxy = proxy_of(target) if reach.proxies else None
                if proxy is not None and restricted:
                    _check_literal_address(host)
                connect = _session(restricted and proxy is None)
                async with connect as session, _get(session, target, proxy) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _receive(response, file, max_bytes)
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


def _check_literal_address(host: str) -> None:
    """Raise Rejected if a host is the number of an address that is not public, in any spelling."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # a name
        if host in LOCAL_NAMES or host.endswith(LOCAL_SUFFIXES):
            raise Rejected("fetch", "forbidden_url", f"{host} is a name within a network") from None
        return
    if not all(is_public(str(address[4][0])) for address in found):
        raise Rejected("fetch", "forbidden_url", f"{host} is no public address; to allow it, give it to --allow-host")


@contextlib.asynccontextmanager
async def _get(session: aiohttp.ClientSession, target: URL, proxy: URL | None) -> AsyncIterator[aiohttp.ClientResponse]:
    """The server's answer to a GET. Rejected if the URL may not be requested."""
    headers = None
    if proxy is not None and proxy.user:
        headers = {"Proxy-Authorization": aiohttp.encode_basic_auth(proxy.user, proxy.password or "")}
        proxy = proxy.with_user(None)
    try:
        response = await session.get(
            target,
            allow_redirects=False,
            proxy=proxy,
            proxy_headers=headers,
            headers=options_for(str(target)).get("headers"),
        )
    except (aiohttp.InvalidURL, UnicodeError):  # UnicodeError: a label of the host's name is empty or too long
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    except aiohttp.ClientConnectorError as error:
        if PRIVATE not in str(error.os_error):
            raise
        message = f"{target.host} has no public address; to allow the host, give it to --allow-host"
        raise Rejected("fetch", "forbidden_url", message) from None
    async with response:
        yield response


async def _receive(response: aiohttp.ClientResponse, file: HeldFile, max_bytes: int) -> FileFacts:
    """Write the body of an answer to ``file``. Rejected if it is not one plain file of at most ``max_bytes``."""
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
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        if file.size_bytes + len(chunk) > max_bytes:
            raise Rejected("fetch", "too_large", f"more than {max_bytes} bytes (--max-item-gb)")
        file.append(chunk)
    return FileFacts.of({"size": file.size_bytes, "ETag": response.headers.get("ETag")})
