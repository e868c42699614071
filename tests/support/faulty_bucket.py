"""An object store in memory that fails as a script says, and checks every write and removal."""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pyarrow.parquet as pq

from pipeline.output.layout.own_files import INDEX
from pipeline.storage import connection
from pipeline.storage import probe as probe_module
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.parquet import arrow_file

T = TypeVar("T")
ROOT = "bucket/out/"
WRITE_ONCE = ("dataset.json", "plan/", "metadata/", "index/", "shards/", "runs/")


class Fault(Enum):
    """How one request fails."""

    BEFORE = "fails"
    AFTER = "succeeds, but the answer is lost"
    REFUSED = "is refused for good"
    SHORT = "gives half the bytes"
    STALE = "does not list every other file"
    KILLED_BEFORE = "its job dies instead"
    KILLED_AFTER = "its job dies of its success"
    OUTAGE = "fails, and so does every later one of the job"
    MEANWHILE = "waits while another job runs"


class Killed(BaseException):
    """The job's process was killed. Nothing catches this, and later requests of the job have no effect."""


class Job:
    """Counts a job's requests from 0 and records the faults that they met."""

    def __init__(self, script: dict[int, Fault], meanwhile: Callable[[], None]) -> None:
        self.script = script
        self.meanwhile = meanwhile
        self.requests = itertools.count()
        self.faults: list[Fault] = []
        self.dead = self.cut_off = False


class FaultyBucket:
    """The methods of an fsspec file system that a store uses, over a dict. Requests belong to the job that began last."""

    protocol = ("faulty",)
    async_impl = False

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.jobs: list[Job] = []

    @contextmanager
    def job(self, script: dict[int, Fault], meanwhile: Callable[[], None] = lambda: None) -> Iterator[Job]:
        """Attribute requests to this job while it runs. Every URL opens this store."""
        job = Job(script, meanwhile)
        self.jobs.append(job)
        try:
            with (
                mock.patch.object(connection, "open_filesystem", lambda url, options: (self, ROOT[:-1])),
                mock.patch.object(WAITS, "sleep"),
                mock.patch.object(probe_module, "CONDITIONAL_DRIVERS", {"s3": "tests"}),
                mock.patch.object(probe_module, "ROUNDS", 1),
                # one after the other, so that requests come in the same order every time
                mock.patch.object(probe_module, "run_at_once", lambda calls: [call() for call in calls]),
            ):
                yield job
        finally:
            self.jobs.remove(job)

    def _request(self, effect: Callable[[], T], *, fault_of: tuple[Fault, Callable[[T], T]] | None = None) -> T:
        if not self.jobs:
            return effect()
        job = self.jobs[-1]
        if job.dead:
            raise Killed
        fault = job.script.get(next(job.requests))
        if fault is not None and not job.cut_off:
            job.faults.append(fault)
        if fault is Fault.MEANWHILE:
            job.meanwhile()
        if fault is Fault.OUTAGE:
            job.cut_off = True
        if fault is Fault.BEFORE or job.cut_off:
            raise OSError(errno.EBUSY, "slow down")
        if fault is Fault.REFUSED:
            raise PermissionError(errno.EACCES, "access denied")
        if fault is Fault.KILLED_BEFORE:
            job.dead = True
            raise Killed
        result = effect()
        if fault is Fault.KILLED_AFTER:
            job.dead = True
            raise Killed
        if fault is Fault.AFTER:
            raise ConnectionResetError(errno.ECONNRESET, "connection reset")
        return fault_of[1](result) if fault_of and fault is fault_of[0] else result

    def _get(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def cat_file(self, path: str) -> bytes:
        return self._request(lambda: self._get(path), fault_of=(Fault.SHORT, lambda data: data[: len(data) // 2]))

    def info(self, path: str) -> dict[str, Any]:
        return self._request(lambda: {"size": len(self._get(path)), "type": "file"})

    def exists(self, path: str) -> bool:
        return self._request(lambda: path in self.objects)

    def find(self, folder: str, detail: bool) -> dict[str, dict[str, Any]]:
        def found() -> dict[str, dict[str, Any]]:
            names = [name for name in sorted(self.objects) if name.startswith(f"{folder}/")]
            return {name: {"size": len(self.objects[name]), "type": "file"} for name in names}

        return self._request(found, fault_of=(Fault.STALE, lambda files: dict(list(files.items())[::2])))

    def ls(self, folder: str, detail: bool) -> list[str]:
        def names() -> list[str]:
            below = (name.removeprefix(f"{folder}/") for name in self.objects if name.startswith(f"{folder}/"))
            return sorted({f"{folder}/{name.partition('/')[0]}" for name in below})

        return self._request(names, fault_of=(Fault.STALE, lambda paths: paths[::2]))

    def rm_file(self, path: str) -> None:
        def remove() -> None:
            self._get(path)
            self._check_removal(path.removeprefix(ROOT))
            del self.objects[path]

        self._request(remove)

    def put_file(self, local: str, path: str, mode: str = "overwrite") -> None:
        self.pipe_file(path, Path(local).read_bytes(), mode)

    def pipe_file(self, path: str, content: bytes, mode: str = "overwrite") -> None:
        def put() -> None:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            promised = path.removeprefix(ROOT).startswith(WRITE_ONCE)
            assert mode == "create" or not promised, f"{path} might have been overwritten"
            self.objects[path] = content

        self._request(put)

    def _check_removal(self, path: str) -> None:
        """Fail if a file is removed that a reader may rely on."""
        assert path.startswith(("attempts/", "shards/", ".probe-")) or path.count("/") == 2, f"{path} was removed"
        for name, content in self.objects.items():
            if INDEX.fullmatch(name.removeprefix(ROOT)):
                named = re.findall(r'"([^"]+)"', content.decode())
                is_record = path.startswith("index/ranges/")
                key = path.rpartition("/")[2].removesuffix(".json") if is_record else path
                assert key not in named, f"{path} was removed, which {name} names"
            if name.startswith(ROOT + "metadata/"):
                metadata = pq.read_metadata(arrow_file(content)).metadata
                assert metadata.get(b"shard", b"").decode() != path, f"{path} was removed, which {name} names"

    def save(self, folder: Path) -> None:
        """Write all objects as files."""
        for path, content in self.objects.items():
            target = folder / path.removeprefix(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
