"""Bytes of many tensors into one buffer: from local disk by reads or memory maps, from stores by merged range requests.

A reader's ``begin`` takes the spans of some batches and gives, for each batch, a call that returns once its bytes are
in place. Locally that call reads; from a store, requests are on their way by then.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.errors import StoreError
from pipeline.loader.range_cache import RangeCache
from pipeline.storage.range_client import open_ranges
from pipeline.storage.store import Store

MAX_OPEN_SHARDS = 256
REQUESTS_IN_FLIGHT = 24
MAX_GAP_BYTES = 1 << 20
MAX_REQUEST_BYTES = 16 << 20

Wait = Callable[[], None]


class Span(NamedTuple):
    """Bytes of a shard and where they go; ``into`` is as long as they are."""

    shard: str
    offset: int
    into: memoryview


class Reader(Protocol):
    """Fills the spans of batches."""

    samples_at_once: int
    """How many samples ``begin`` should be given, so that neighbours can be merged."""

    def begin(self, batches: Sequence[list[Span]]) -> list[Wait]:
        """A call per batch that returns when its spans are filled. StoreError names the shard."""

    def close(self) -> None:
        """Let go of threads and files."""


def open_reader(store: Store, *, mapped: bool, cache: RangeCache | None) -> Reader:
    """The reader that fits where the shards are."""
    if store.folder is None:
        return RemoteReader(store, cache)
    return MappedReader(store.folder) if mapped else LocalReader(store.folder)


class _OpenShards:
    """Open files of the shards used last. One that is dropped is closed when its last reader is done with it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: str) -> _File:
        with self._lock:
            file = self._files.get(shard) or _File(f"{self._folder}/{shard}")
            self._files[shard] = file
            self._files.move_to_end(shard)
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)
            return file


class _File:
    def __init__(self, path: str) -> None:
        self.path = path
        self._view: memoryview | None = None
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.fd = -1
            raise StoreError(f"{path}: {error.strerror}; was the output moved or cut while it was read?") from error

    def mapped(self) -> memoryview:
        if self._view is None:
            self._view = memoryview(mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ))
        return self._view

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class LocalReader:
    """``preadv`` straight into the batch, in the thread that waits for it."""

    samples_at_once = 1

    def __init__(self, folder: str) -> None:
        self._shards = _OpenShards(folder)

    def begin(self, batches: Sequence[list[Span]]) -> list[Wait]:
        return [partial(self._fill, spans) for spans in batches]

    def close(self) -> None:
        self._shards = _OpenShards("")

    def _fill(self, spans: list[Span]) -> None:
        for shard, offset, into in spans:
            file, done = self._shards.get(shard), 0
            while done < len(into):
                count = os.preadv(file.fd, [into[done:]], offset + done)
                if not count:
                    raise StoreError(f"{file.path} ends before byte {offset + len(into)}, which the index names")
                done += count


class MappedReader(LocalReader):
    """Copies from memory maps: for sets that fit in memory, where it spares the system calls."""

    def _fill(self, spans: list[Span]) -> None:
        for shard, offset, into in spans:
            file = self._shards.get(shard)
            found = file.mapped()[offset : offset + len(into)]
            if len(found) != len(into):
                raise StoreError(f"{file.path} ends before byte {offset + len(into)}, which the index names")
            np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(found, np.uint8))  # lets other threads run


class RemoteReader:
    """Range requests, many at a time, across batches; neighbours share one."""

    samples_at_once = 64

    def __init__(self, store: Store, cache: RangeCache | None) -> None:
        self._read_range = open_ranges(store)
        self._cache = cache
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT)

    def begin(self, batches: Sequence[list[Span]]) -> list[Wait]:
        pieces = [(n, piece) for n, spans in enumerate(batches) for span in spans for piece in _split(span)]
        requests = merge_spans([piece for _, piece in pieces])
        first = {id(piece): n for n, piece in pieces}
        requests.sort(key=lambda request: min(first[id(piece)] for piece in request))  # what is due first goes first
        waited: list[list[Future[None]]] = [[] for _ in batches]
        for request in requests:
            future = self._pool.submit(self._fetch, request)
            for n in {first[id(piece)] for piece in request}:
                waited[n].append(future)
        return [partial(_wait, futures) for futures in waited]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _fetch(self, request: list[Span]) -> None:
        if self._cache is not None:
            request = [piece for piece in request if not self._cache.read(*piece)]
        for pieces in merge_spans(request):
            shard, start = pieces[0].shard, pieces[0].offset
            length = max(piece.offset + len(piece.into) for piece in pieces) - start
            content = self._read_range(shard, start, length)
            for piece in pieces:
                at = piece.offset - start
                piece.into[:] = content[at : at + len(piece.into)]
                if self._cache is not None:
                    self._cache.write(*piece)


def merge_spans(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by request: those of one shard with at most ``MAX_GAP_BYTES`` between them, up to ``MAX_REQUEST_BYTES``."""
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


def _split(span: Span) -> list[Span]:
    return [
        Span(span.shard, span.offset + start, span.into[start : start + MAX_REQUEST_BYTES])
        for start in range(0, len(span.into), MAX_REQUEST_BYTES)
    ]


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
