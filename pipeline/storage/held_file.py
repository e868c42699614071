"""Files that a process holds while it uses them: in memory as far as a budget allows, otherwise on the scratch disk."""

from __future__ import annotations

import fcntl
import io
import os
import tempfile
import threading
import weakref
from pathlib import Path

from pipeline.errors import StoreError

DEFAULT_SHARE = 0.25
"""Part of the memory of an encoder that its items may take. Frames, the VAE and decoding processes need the rest."""
COPY_BYTES = 1 << 20
CGROUP_LIMITS = ("/sys/fs/cgroup{path}/memory.max", "/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
"""Files with the memory limit of a control group, of version 2 and version 1."""
UNLIMITED_BYTES = 1 << 60
"""Limits above this mean that there is none."""


class MemoryBudget:
    """Bytes that the held files of this process may take in memory. Any number of threads may use it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.spooled_bytes = 0
        """Bytes written to the scratch disk so far, because they did not fit."""
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> bool:
        """Count bytes in memory; False, without counting them, if they do not fit."""
        with self._lock:
            if self.used_bytes + num_bytes > self.limit_bytes:
                return False
            self.used_bytes += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Count bytes in memory no longer."""
        with self._lock:
            self.used_bytes -= num_bytes


class _Reservation:
    """The bytes of one held file that are in memory."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> bool:
        if not self.budget.take(num_bytes):
            return False
        self.num_bytes += num_bytes
        return True

    def release(self) -> None:
        self.budget.give_back(self.num_bytes)
        self.num_bytes = 0


class HeldFile(io.FileIO):
    """A file without a name that grows by ``append``. It moves to the scratch disk when the budget is used up.

    Its descriptor stays the same when it moves. Its bytes count until it is closed or forgotten.
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        super().__init__(os.memfd_create("item", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b")
        self._reservation = _Reservation(budget or _budget)
        self._on_disk = False
        self.size_bytes = 0
        weakref.finalize(self, self._reservation.release).atexit = False

    def __len__(self) -> int:
        return self.size_bytes

    def append(self, data: bytes) -> None:
        """Write bytes at the end. StoreError if they fit neither the budget nor the scratch disk."""
        if not self._on_disk and not self._reservation.grow(len(data)):
            self._move_to_disk()
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(self.fileno(), view, self.size_bytes)
                self.size_bytes += written
                view = view[written:]
        except OSError as error:
            raise self._no_room(error) from error
        if self._on_disk:
            self._reservation.budget.spooled_bytes += len(data)

    def freeze(self) -> None:
        """Keep the file as it is: a decoder that runs its input's code must not change what the next one gets."""
        if not self._on_disk:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fileno(), fcntl.F_ADD_SEALS, seals)
            return
        readable = os.open(f"/proc/self/fd/{self.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(readable, self.fileno(), inheritable=False)
        os.close(readable)

    def empty(self) -> None:
        """Remove all bytes, to begin again."""
        os.ftruncate(self.fileno(), 0)
        os.lseek(self.fileno(), 0, os.SEEK_SET)
        self._reservation.release()
        self.size_bytes = 0

    def close(self) -> None:
        """Close the file and give its bytes back to the budget."""
        if not self.closed:
            self._reservation.release()
        super().close()

    def _move_to_disk(self) -> None:
        """Copy what is in memory to a file on the scratch disk, which takes the place of the descriptor."""
        try:
            with tempfile.TemporaryFile() as file:
                for start in range(0, self.size_bytes, COPY_BYTES):
                    file.write(os.pread(self.fileno(), COPY_BYTES, start))
                file.seek(0)
                os.dup2(file.fileno(), self.fileno(), inheritable=False)
        except OSError as error:
            raise self._no_room(error) from error
        self._on_disk = True
        self._reservation.budget.spooled_bytes += self.size_bytes
        self._reservation.release()

    def _no_room(self, error: OSError) -> StoreError:
        return StoreError(
            f"an item exceeds the memory for items ({self._reservation.budget.limit_bytes} bytes), and the scratch disk "
            f"cannot hold it ({tempfile.gettempdir()}: {error.strerror}): set TMPDIR to a disk with more room, or raise "
            "--item-memory-gb"
        )


def usable_memory_bytes() -> int:
    """Memory that this process may use: that of the machine, or less if a control group limits it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    groups = {line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] in ("", "memory")}
    folders = {str(parent).rstrip("/") for group in groups for parent in (Path(group), *Path(group).parents)}
    for name in (limit.format(path=folder) for limit in CGROUP_LIMITS for folder in {"", *folders}):
        try:
            limit_bytes = int(Path(name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # ValueError: "max"
            continue
        if 0 < limit_bytes < UNLIMITED_BYTES:
            found.append(limit_bytes)
    return min(found)


def set_memory_budget(limit_bytes: int) -> MemoryBudget:
    """Set the budget of the files that this process holds from now on."""
    global _budget
    _budget = MemoryBudget(limit_bytes)
    return _budget


_budget = MemoryBudget(int(usable_memory_bytes() * DEFAULT_SHARE))
