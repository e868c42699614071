"""Opens outputs for writing, after a proof that the store creates a file only once.

The proof has two halves. The store's driver must be one that makes conditional requests: fsspec's own ``mode="create"``
looks first and writes then, which two writers at once would rarely show. And the store must keep the condition: two
writers with connections of their own create the same file at the same time, and at most one of them may succeed.
"""

from __future__ import annotations

import errno
import secrets
from functools import partial

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.concurrency import run_at_once
from pipeline.storage.drivers.errors import error_code, is_transient, tidy
from pipeline.storage.store import Store
from pipeline.storage.uploads import SINGLE_REQUEST_BYTES
from pipeline.storage.urls import OTHER_SPELLINGS

CONDITIONAL_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Packages whose ``mode="create"`` is a conditional request, by scheme."""
OUTPUT_SCHEMES = ("file", *CONDITIONAL_DRIVERS, "hf")
ROUNDS = 3
"""Number of files that two writers create at once."""
PROBE_BYTES = 16 << 10
"""Size of such a file: sending it takes a moment, in which a store that only looks first sees no file."""
NOT_IMPLEMENTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
ADVICE = "give --single-writer if no other job writes there"
REPLACES = f"lets a second writer replace a file; {ADVICE}"
REPLACES_BY_PARTS = (
    "this store lets an upload in parts replace a file; only files of more than "
    f"{SINGLE_REQUEST_BYTES >> 20} MiB are uploaded in this way, and their names are hashes of their content"
)


def open_output(url: str, *, single_writer: bool = False) -> Store:
    """Open an output for writing. ConfigError says what to do if the store cannot hold one."""
    _check_scheme(url)
    store = Store(url, single_writer=single_writer)
    probe(store)
    return store


def probe(store: Store) -> None:
    """Check that files can be created, and, without ``--single-writer``, only once. Leaves nothing.

    ConfigError says what to do if they cannot. StoreError if the store fails for the moment.
    """
    if not store.single_writer and not _has_conditional_driver(store):
        scheme = store.url.partition("://")[0]
        raise ConfigError(
            f"{store.url} cannot be shared by jobs: the driver of {scheme}:// cannot create a file only if it is absent; "
            + ADVICE
        )
    try:
        problem = _find_problem(store)
    except StoreError as error:
        cause = error.__cause__
        if cause is not None and is_transient(cause) and not _is_unsupported(cause):
            raise
        advice = f"; {ADVICE}" if _is_unsupported(cause) and not store.single_writer else ""
        raise ConfigError(f"the output cannot be written: {error}{advice}") from error
    if problem:
        raise ConfigError(f"{store.url} {problem}")


def _check_scheme(url: str) -> None:
    """Raise ConfigError unless the scheme of a URL is that of a store that can hold an output."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme in OUTPUT_SCHEMES or scheme in OTHER_SPELLINGS:
        return
    known = ", ".join(f"{name}://" for name in CONDITIONAL_DRIVERS)
    raise ConfigError(f"{tidy(scheme)}:// cannot hold an output; outputs are folders or {known}")


def _has_conditional_driver(store: Store) -> bool:
    if store.folder is not None:
        return True
    package = CONDITIONAL_DRIVERS.get(store.url.partition("://")[0])
    return package in {base.__module__.partition(".")[0] for base in type(store.client[0]).__mro__}


def _is_unsupported(error: BaseException | None) -> bool:
    """Return whether the store does not know conditional requests."""
    if error is None:
        return False
    return error_code(error) == "NotImplemented" or (isinstance(error, OSError) and error.errno in NOT_IMPLEMENTED)


def _find_problem(store: Store) -> str | None:
    """Create some files, and remove them; a sentence without its subject if the store is no place for an output."""
    path = f".probe-{secrets.token_hex(8)}"
    paths = [path] if store.single_writer else [f"{path}-{number}" for number in range(ROUNDS)]
    other = store.with_own_client()
    for path in paths:
        created_once = _creates(store, path) if store.single_writer else _creates_once(store, other, path)
        if not created_once:
            store.delete(path)
            return "does not keep what is written to it" if store.single_writer else REPLACES
    if not store.single_writer and store.replaces_by_parts(paths[0]):
        store.notes.add(REPLACES_BY_PARTS)
    for path in paths:
        store.delete(path)
    return None


def _creates(store: Store, path: str) -> bool:
    """Create a file and read it back."""
    content = b"probe"
    return store.put_new(path, content) and not store.put_new(path, b"again") and _read(store, path) == content


def _creates_once(store: Store, other: Store, path: str) -> bool:
    """Let two writers create a file at once, and a third afterwards. Return whether none of them replaced it.

    A store may lose the answer to the writer that succeeded, so it is right if neither writer knows of its success.
    """
    contents = [letter * PROBE_BYTES for letter in (b"1", b"2")]
    writers = [partial(store.put_new, path, contents[0]), partial(other.put_new, path, contents[1])]
    created = run_at_once(writers)
    found = _read(store, path)
    if found not in contents or all(created) or (any(created) and found != contents[created.index(True)]):
        return False
    return not other.put_new(path, b"3" * PROBE_BYTES) and _read(store, path) == found


def _read(store: Store, path: str) -> bytes | None:
    try:
        return store.get(path)
    except FileNotFoundError:
        return None
