"""An item's bytes as a file descriptor."""

from __future__ import annotations

import errno
import os
import stat

from pipeline.errors import Rejected, SourceChanged, StoreError
from pipeline.recipe import Recipe
from pipeline.sources import url_policy as targets
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, read_whole, reason
from pipeline.storage.retry import remote_errors
from pipeline.storage.urls import FileFacts, scheme_of

NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def fetch(item: Item, recipe: Recipe) -> int:
    """A file descriptor with the item's bytes, for the caller to close; sets ``item.facts`` where they were not known.

    Rejected if there is nothing to open. SourceChanged if a planned file is not as planned, StoreError if the store
    does not give it.
    """
    if item.fault is not None:
        raise Rejected.because(item.fault)
    if item.content is not None:
        return _in_memory(item.content)
    scheme = scheme_of(item.location)
    try:
        if scheme == "file":
            return _open_local(item, recipe)
        return _download(item, recipe) if scheme in targets.HTTP else _read_remote(item, recipe)
    except FileNotFoundError:
        if item.facts is not None:
            raise SourceChanged.between(item.uri, item.facts, None) from None
        raise Rejected("fetch", "not_found", "there is no such file") from None


def _open_local(item: Item, recipe: Recipe) -> int:
    try:
        # a named pipe would keep a blocking open waiting for ever
        fd = os.open(item.location.removeprefix("file://"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise Rejected("fetch", "not_readable", "this process may not read the file") from None
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            raise FileNotFoundError(item.uri) from None
        if error.errno == errno.ENXIO:
            raise Rejected("fetch", "not_a_file", "it is a device or socket") from None
        raise StoreError(f"{item.uri} could not be read: {reason(error)}") from None
    except ValueError:  # a NUL in its name
        raise FileNotFoundError(item.uri) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("fetch", "not_a_file", "it is a folder, device, pipe or socket")
        _check(item, FileFacts.of({"size": found.st_size, "mtime": found.st_mtime}), recipe)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_remote(item: Item, recipe: Recipe) -> int:
    facts = file_facts(item.location)
    _check(item, facts, recipe)
    return _in_memory(read_whole(item.location, facts.size))


def _download(item: Item, recipe: Recipe) -> int:
    from pipeline.sources import http_download as web  # its client takes a quarter of a driver's start

    fd = os.memfd_create("item")
    try:
        hosts = None if item.trusted else recipe.private_hosts
        _check(item, web.download(item.location, fd, recipe.max_item_bytes, hosts), recipe)
    except BaseException as error:
        os.close(fd)
        if not isinstance(error, remote_errors()):
            raise
        if getattr(error, "status", None) in (404, 410):
            raise FileNotFoundError(item.uri) from None
        if item.trusted:
            raise StoreError(f"{item.uri} could not be read: {reason(error)}") from None
        message = f"the server does not give the file: {reason(error)}"
        raise Rejected("fetch", "http_error", message) from None
    return fd


def _check(item: Item, facts: FileFacts, recipe: Recipe) -> None:
    """Note the file's facts; SourceChanged if others were planned."""
    if item.facts not in (None, facts):
        raise SourceChanged.between(item.uri, item.facts, facts)
    item.facts = facts
    if facts.size > recipe.max_item_bytes:
        raise Rejected(
            "fetch", "too_large", f"{facts.size} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
        )


def _in_memory(content: bytes) -> int:
    fd = os.memfd_create("item")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd
