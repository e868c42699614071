"""Fetches an item's bytes into a file, whose descriptor a decoding child can inherit.

Bytes that do not come from a local file count against the memory budget of ``held_file.py``.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Sequence

from pipeline.errors import ConfigError, KeyRefusal, Reject, Rejected, SourceChanged, StoreError, StoreRefusal
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, open_retrying, read_whole
from pipeline.sources.url_policy import parse_url
from pipeline.storage.drivers.errors import describe_error, http_status, is_missing, remote_errors
from pipeline.storage.held_file import HeldFile
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, scheme_of

WHOLE_BYTES = 32 << 20
"""Size up to which a file of a store is read in one request."""
PART_BYTES = 8 << 20
"""Bytes of larger files that are read at a time."""
EMPTY = Reject("probe", "empty", "the file is empty")
"""Reject of an item without bytes, in the words of the decoders, which would not find more."""
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def fetch(item: Item, recipe: Recipe) -> io.FileIO:
    """Return a file with the item's bytes, for the caller to close. Sets ``item.facts`` if it was None.

    Rejected if the item cannot be fetched. SourceChanged if a planned file is not as planned, StoreError if the store
    of a file that the user named fails.
    """
    if item.fault is not None:
        raise Rejected.because(item.fault)
    if item.content == b"":
        raise Rejected.because(EMPTY)
    if item.content is not None:
        return item.content if isinstance(item.content, HeldFile) else _held(item.content)
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


def _open_local(item: Item, recipe: Recipe) -> io.FileIO:
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
    return io.FileIO(fd, "rb")


def _read_remote(item: Item, recipe: Recipe) -> HeldFile:
    """Read a file of a store that is not a web server. A refusal rejects an item that a manifest names.

    A refusal of the keys does so only if nothing but rows names the store: otherwise the keys are the job's own.
    """
    try:
        facts = file_facts(item.location, fresh=False)
        _set_facts(item, facts, recipe)
        if facts.size <= WHOLE_BYTES:
            return _held(read_whole(item.location, facts.size))
        return _read_in_parts(item, facts, recipe)
    except (ConfigError, StoreRefusal, KeyRefusal) as error:
        if item.trusted or (isinstance(error, KeyRefusal) and not item.only_rows_name_store):
            raise
        no_driver = isinstance(error, ConfigError)
        raise Rejected("fetch", "no_driver" if no_driver else "not_readable", str(error)) from None


def _read_in_parts(item: Item, facts: FileFacts, recipe: Recipe) -> HeldFile:
    """Read a large file of a store. SourceChanged if it is another one at the end."""
    file = HeldFile()
    try:
        with open_retrying(item.location, facts.size) as source:
            while data := source.read(PART_BYTES):
                file.append(data)
        _set_facts(item, file_facts(item.location), recipe)
        file.freeze()
    except BaseException:
        file.close()
        raise
    return file


def _fetch_http(item: Item, recipe: Recipe) -> HeldFile:
    # aiohttp takes a quarter of a driver's start-up time
    from pipeline.sources.http_download import Reach, download, proxy_of

    file = HeldFile()
    try:
        reach = Reach() if item.trusted else Reach(private_hosts=recipe.private_hosts, proxies=recipe.trust_proxy)
        _set_facts(item, download(item.location, file, recipe.max_item_bytes, reach), recipe)
        file.freeze()
    except BaseException as error:
        file.close()
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
    return file


def _set_facts(item: Item, facts: FileFacts, recipe: Recipe) -> None:
    """Set the item's facts. SourceChanged if others were planned, Rejected if the file is too large."""
    if item.facts not in (None, facts):
        raise SourceChanged.between(item.uri, item.facts, facts)
    item.facts = facts
    if facts.size > recipe.max_item_bytes:
        raise Rejected(
            "fetch", "too_large", f"{facts.size} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
        )


def _held(content: bytes) -> HeldFile:
    """A file with these bytes."""
    file = HeldFile()
    file.append(content)
    file.freeze()
    return file
