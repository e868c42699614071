"""Fetches an item's bytes into a file descriptor, which a decoding child can inherit."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from pipeline.errors import ConfigError, Rejected, SourceChanged, StoreError, StoreRefusal
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.sources.url_policy import parse_url
from pipeline.storage.drivers.errors import describe_error, http_status, is_missing, remote_errors
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, scheme_of

NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def fetch(item: Item, recipe: Recipe) -> int:
    """Return a file descriptor with the item's bytes, for the caller to close. Sets ``item.facts`` if it was None.

    Rejected if the item cannot be fetched. SourceChanged if a planned file is not as planned, StoreError if the store
    of a file that the user named fails.
    """
    if item.fault is not None:
        raise Rejected.because(item.fault)
    if item.content is not None:
        return _in_memory(item.content)
    scheme = scheme_of(item.location)
    try:
        if scheme == "file":
            return _open_local(item, recipe)
        return _fetch_http(item, recipe) if scheme in HTTP_SCHEMES else _read_remote(item, recipe)
    except FileNotFoundError:
        if item.facts is not None:
            raise SourceChanged.between(item.uri, item.facts, None) from None
        raise Rejected("fetch", "not_found", "there is no such file") from None


def share_facts(fetched: Item, others: Sequence[Item]) -> None:
    """Give the facts of a fetched item to other ranges of its file. SourceChanged if other facts were planned."""
    for item in others:
        if item.content is None and item.facts not in (None, fetched.facts):
            raise SourceChanged.between(item.uri, item.facts, fetched.facts)
        item.facts = fetched.facts


def _open_local(item: Item, recipe: Recipe) -> int:
    try:
        # without O_NONBLOCK, opening a named pipe may wait forever
        fd = os.open(item.location.removeprefix("file://"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise Rejected("fetch", "not_readable", "this process may not read the file") from None
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            raise FileNotFoundError(item.uri) from None
        if error.errno == errno.ENXIO:
            raise Rejected("fetch", "not_a_file", "it is a device or socket") from None
        raise StoreError(f"{item.uri} could not be read: {describe_error(error)}") from None
    except ValueError:  # the name has a NUL
        raise FileNotFoundError(item.uri) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("fetch", "not_a_file", "it is a folder, device, pipe or socket")
        _set_facts(item, FileFacts.of({"size": status.st_size, "mtime": status.st_mtime}), recipe)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_remote(item: Item, recipe: Recipe) -> int:
    """Read a file of a store that is not a web server. A refusal rejects an item that a manifest names."""
    try:
        facts = file_facts(item.location, fresh=False)
        _set_facts(item, facts, recipe)
        return _in_memory(read_whole(item.location, facts.size))
    except (ConfigError, StoreRefusal) as error:
        if item.trusted:
            raise
        no_driver = isinstance(error, ConfigError)
        raise Rejected("fetch", "no_driver" if no_driver else "not_readable", str(error)) from None


def _fetch_http(item: Item, recipe: Recipe) -> int:
    # aiohttp takes a quarter of a driver's start-up time
    from pipeline.sources.http_download import Reach, download, proxy_of

    fd = _memory_file()
    try:
        reach = Reach() if item.trusted else Reach(private_hosts=recipe.private_hosts, proxies=recipe.trust_proxy)
        _set_facts(item, download(item.location, fd, recipe.max_item_bytes, reach), recipe)
    except BaseException as error:
        os.close(fd)
        if not isinstance(error, remote_errors()):
            raise
        if is_missing(error):
            raise FileNotFoundError(item.uri) from None
        if item.trusted:
            raise StoreError(f"{item.uri} could not be read: {describe_error(error)}") from None
        message = f"the server did not send the file: {describe_error(error)}"
        if not recipe.trust_proxy and http_status(error) is None and proxy_of(parse_url(item.location)) is not None:
            message += "; rows of manifests use the proxy of this environment only with --trust-proxy"
        raise Rejected("fetch", "http_error", message) from None
    _seal(fd)
    return fd


def _set_facts(item: Item, facts: FileFacts, recipe: Recipe) -> None:
    """Set the item's facts. SourceChanged if others were planned, Rejected if the file is too large."""
    if item.facts not in (None, facts):
        raise SourceChanged.between(item.uri, item.facts, facts)
    item.facts = facts
    if facts.size > recipe.max_item_bytes:
        raise Rejected(
            "fetch", "too_large", f"{facts.size} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
        )


def _in_memory(content: bytes) -> int:
    """A file descriptor of a file in memory."""
    fd = _memory_file()
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    _seal(fd)
    return fd


def _memory_file() -> int:
    return os.memfd_create("item", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _seal(fd: int) -> None:
    """Keep a memory file as it is: a decoder that runs its code must not change what the next one gets."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
