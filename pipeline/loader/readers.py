"""Read the bytes of many tensors into buffers: from local disk by reads or memory maps, from stores by range requests.

A reader's ``begin`` takes the spans of some batches and returns one iterator per batch, which goes on when the bytes of
the next span are in place. Locally that iterator reads. From a store, ``begin`` has already sent the requests.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.errors import StoreError
from pipeline.loader.range_cache import RangeCache
from pipeline.output.purges.deleted_shards import purge_error
from pipeline.storage.concurrency import DaemonPool
from pipeline.storage.drivers.errors import describe_error
from pipeline.storage.local.reads import open_to_read, read_into
from pipeline.storage.range_client import open_ranges
from pipeline.storage.retry import SHORT_PATIENCE_S, retried
from pipeline.storage.store import Store
from pipeline.storage.urls import check_inside

MAX_OPEN_SHARDS = 256
"""Number of shards that a local reader keeps open."""
REQUESTS_IN_FLIGHT = 24
"""Number of range requests that run at the same time."""
MAX_GAP_BYTES = 1 << 20
"""Largest gap between two tensors that one request reads."""
MAX_REQUEST_BYTES = 16 << 20
"""Largest size of one request."""

Explain = Callable[[str], Exception | None]
"""Finds the error that says why a shard is gone; None if that is not known."""

Filled = Iterator[None]
"""Yields once for each span of a batch, in their order, when its bytes are in place."""


class Span(NamedTuple):
    """A range of a shard, as long as ``into``, and the memory that it is read into."""

    shard: str
    offset: int
    into: memoryview


class Reader(Protocol):
    """Fills the spans of batches."""

    samples_at_once: int
    """Number of samples that one call of ``begin`` should cover, so that ranges close to each other can be merged."""

    def begin(self, batches: Sequence[list[Span]]) -> list[Filled]:
        """Start to read batches. Returns an iterator per batch, which waits for the spans of that batch one by one.

        The iterator raises StoreError, which names the shard.
        """

    def close(self) -> None:
        """Release threads and files."""


def open_reader(store: Store, *, mapped: bool, cache: RangeCache | None) -> Reader:
    """Return the reader for the place where the shards are, a local folder or a store."""
    explain = partial(purge_error, store)
    if store.folder is None:
        return RemoteReader(store, cache, explain)
    return MappedReader(store.folder, explain) if mapped else LocalReader(store.folder, explain)


def begin_one(reader: Reader, spans: list[Span]) -> Filled:
    """Start to read one batch."""
    (filled,) = reader.begin([spans])
    return filled


class _OpenShards:
    """The shards that were used last, open. A shard that is dropped is closed when its last reader is done with it."""

    def __init__(self, folder: str, explain: Explain) -> None:
        self._folder = folder
        self._explain = explain
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: str) -> _File:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                check_inside(shard, self._folder)
                try:
                    file = _File(self.path(shard))
                except StoreError as error:
                    raise self._explain(shard) or error from error
            self._files[shard] = file
            self._files.move_to_end(shard)
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)
            return file

    def drop(self, shard: str) -> None:
        """Open a shard anew the next time."""
        with self._lock:
            self._files.pop(shard, None)

    def path(self, shard: str) -> str:
        """The shard's path on this machine."""
        return f"{self._folder}/{shard}"


class _File:
    """An open shard."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._view: memoryview | None = None
        try:
            self.fd = open_to_read(path)
        except FileNotFoundError as error:
            self.fd = -1
            raise StoreError(f"{path}: {error.strerror}. Was the output moved or deleted while it was read?") from error
        except OSError:
            self.fd = -1
            raise

    def mapped(self) -> memoryview:
        if self._view is None:
            self._view = memoryview(mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ))
        return self._view

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class LocalReader:
    """Reads straight into the buffer, in the thread that waits for it."""

    samples_at_once = 1

    def __init__(self, folder: str, explain: Explain) -> None:
        self._explain = explain
        self._shards = _OpenShards(folder, explain)

    def begin(self, batches: Sequence[list[Span]]) -> list[Filled]:
        return [self._fill(spans) for spans in batches]

    def close(self) -> None:
        self._shards = _OpenShards("", self._explain)

    def _fill(self, spans: list[Span]) -> Filled:
        for span in spans:
            try:
                self._fill_one(span)
            except OSError:
                self._fill_again(span)
            yield

    def _fill_one(self, span: Span) -> None:
        shard, offset, into = span
        file, num_read = self._shards.get(shard), 0
        while num_read < len(into):
            count = read_into(file.fd, into[num_read:], offset + num_read)
            if not count:
                raise _cut_off(file, offset + len(into))
            num_read += count

    def _fill_again(self, span: Span) -> None:
        """Read after a failure, from the file opened anew: network disks fail for a while (EIO, ESTALE)."""

        def attempt() -> None:
            self._shards.drop(span.shard)
            self._fill_one(span)

        try:
            retried(attempt, longest_s=SHORT_PATIENCE_S)
        except OSError as error:
            raise StoreError(f"{self._shards.path(span.shard)}: {describe_error(error)}") from error


class MappedReader(LocalReader):
    """Copies from memory maps. Faster than ``LocalReader`` for sets that fit in memory, because it makes no system calls."""

    def _fill_one(self, span: Span) -> None:
        shard, offset, into = span
        file = self._shards.get(shard)
        content = file.mapped()[offset : offset + len(into)]
        if len(content) != len(into):
            raise _cut_off(file, offset + len(into))
        np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(content, np.uint8))  # releases the interpreter lock


class RemoteReader:
    """Sends many range requests at a time, across batches. Ranges that are close to each other share a request."""

    samples_at_once = 64

    def __init__(self, store: Store, cache: RangeCache | None, explain: Explain) -> None:
        self._read_range = open_ranges(store)
        self._explain = explain
        self._cache = cache
        self._pool = DaemonPool(REQUESTS_IN_FLIGHT)

    def begin(self, batches: Sequence[list[Span]]) -> list[Filled]:
        futures: list[list[list[Future[None]]]] = [[[] for _ in spans] for spans in batches]
        pieces = [
            (batch, number, piece)
            for batch, spans in enumerate(batches)
            for number, span in enumerate(spans)
            for piece in _split(span)
        ]
        span_of = {id(piece): (batch, number) for batch, number, piece in pieces}
        requests = merge_spans([piece for _, _, piece in pieces])
        requests.sort(key=lambda request: min(span_of[id(piece)] for piece in request))  # earliest batch first
        for request in requests:
            future = self._pool.submit(partial(self._fetch, request))
            for batch, number in {span_of[id(piece)] for piece in request}:
                futures[batch][number].append(future)
        return [_wait(awaited) for awaited in futures]

    def close(self) -> None:
        """Give up all requests. A store that does not answer keeps nobody waiting."""
        self._pool.close()

    def _fetch(self, request: list[Span]) -> None:
        if self._cache is not None:
            request = [piece for piece in request if not self._cache.read(*piece)]
        for pieces in merge_spans(request):
            shard, start = pieces[0].shard, pieces[0].offset
            length = max(piece.offset + len(piece.into) for piece in pieces) - start
            try:
                content = self._read_range(shard, start, length)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                raise self._explain(shard) or error from error
            for piece in pieces:
                skipped = piece.offset - start
                piece.into[:] = content[skipped : skipped + len(piece.into)]
                if self._cache is not None:
                    self._cache.write(*piece)


def merge_spans(spans: Sequence[Span]) -> list[list[Span]]:
    """Group spans into requests.

    The spans of a request are in one shard, at most ``MAX_GAP_BYTES`` apart, and cover at most ``MAX_REQUEST_BYTES``.
    """
    requests: list[list[Span]] = []
    stop = 0
    for span in sorted(spans, key=lambda span: (span.shard, span.offset)):
        last = requests[-1] if requests else None
        end = span.offset + len(span.into)
        if (
            last is not None
            and last[0].shard == span.shard
            and span.offset - stop <= MAX_GAP_BYTES
            and end - last[0].offset <= MAX_REQUEST_BYTES
        ):
            last.append(span)
            stop = max(stop, end)
        else:
            requests.append([span])
            stop = end
    return requests


def _cut_off(file: _File, end: int) -> StoreError:
    return StoreError(
        f"{file.path} ends before byte {end}, up to which the index says it has data; run jobs/verify_dataset.py"
    )


def _split(span: Span) -> list[Span]:
    return [
        Span(span.shard, span.offset + start, span.into[start : start + MAX_REQUEST_BYTES])
        for start in range(0, len(span.into), MAX_REQUEST_BYTES)
    ]


def _wait(spans: list[list[Future[None]]]) -> Filled:
    for futures in spans:
        for future in futures:
            future.result()
        yield
