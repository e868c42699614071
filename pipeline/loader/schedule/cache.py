"""Plans of epochs in files that the processes of a node map: one of them makes a plan, a resumed job makes none."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.loader.schedule.epoch import EpochSchedule

SCHEDULES_KEPT = 8
"""Plans of a catalog that are kept, the newest; a process that has mapped an older one keeps it."""


def cached_schedule(folder: Path, name: str, make: Callable[[], EpochSchedule]) -> EpochSchedule:
    """The plan that ``name`` stands for, made if no process has done so yet. ``name`` says all that it follows from."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _write(path, make())
            _forget_oldest(folder)
        return _mapped(path)


def _write(path: Path, epoch: EpochSchedule) -> None:
    facts = [*epoch.bounds.shape, epoch.dropped, epoch.padded, epoch.repeated]
    partial = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            np.save(file, np.concatenate([np.array(facts, dtype=np.int64), epoch.bounds.ravel(), epoch.rows]))
        partial.replace(path)  # whole, or not at all
    finally:
        partial.unlink(missing_ok=True)


def _mapped(path: Path) -> EpochSchedule:
    values = np.load(path, mmap_mode="r").view(np.ndarray)
    steps, edges, dropped, padded, repeated = values[:5].tolist()
    bounds, rows = values[5 : 5 + steps * edges].reshape(steps, edges), values[5 + steps * edges :]
    return EpochSchedule(rows=rows, bounds=bounds, dropped=dropped, padded=padded, repeated=repeated)


def _forget_oldest(folder: Path) -> None:
    for path in sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)[:-SCHEDULES_KEPT]:
        path.unlink()
