"""Schedules in files that the processes of a node map: one process makes a schedule, a resumed job makes none."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.loader.schedule.epoch import EpochSchedule
from pipeline.storage.local.cache import lock_beside, sweep, warn_of_cache, write_whole

SCHEDULES_KEPT = 8
"""Number of schedules that a folder keeps, the newest. A process that has mapped an older one can go on using it."""


def cached_schedule(folder: Path, name: str, make: Callable[[], EpochSchedule]) -> EpochSchedule:
    """Return the schedule called ``name``, mapped from a file, which ``make`` fills if no process has done so yet.

    name: everything that the schedule depends on. If the folder cannot be used, a warning says so and this process makes
    the schedule for itself.
    """
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
    try:
        return _map(path) if path.exists() else _make(path, make)
    except FileNotFoundError:  # removed as the oldest one at this moment
        return make()
    except (OSError, ValueError) as error:
        warn_of_cache(folder, error, "this process makes its schedules for itself")
        return make()


def _make(path: Path, make: Callable[[], EpochSchedule]) -> EpochSchedule:
    """Return the schedule mapped from its file, which one process makes."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with lock_beside(folder / "schedules"):  # held until the file is mapped, so that it is not removed before
        if not path.exists():
            schedule = make()
            sweep(folder)
            write_whole(path, lambda partial: _write(partial, schedule))
            _remove_oldest(folder)
        return _map(path)


def _write(path: Path, schedule: EpochSchedule) -> None:
    # Layout: one int64 array of 5 numbers, then bounds row by row, then rows.
    counts = [*schedule.bounds.shape, schedule.dropped, schedule.padded, schedule.repeated]
    with path.open("wb") as file:
        np.save(file, np.concatenate([np.array(counts, dtype=np.int64), schedule.bounds.ravel(), schedule.rows]))


def _map(path: Path) -> EpochSchedule:
    values = np.load(path, mmap_mode="r").view(np.ndarray)
    num_steps, num_edges, dropped, padded, repeated = values[:5].tolist()
    num_bounds = num_steps * num_edges
    bounds, rows = values[5 : 5 + num_bounds].reshape(num_steps, num_edges), values[5 + num_bounds :]
    return EpochSchedule(rows=rows, bounds=bounds, dropped=dropped, padded=padded, repeated=repeated)


def _remove_oldest(folder: Path) -> None:
    for path in sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)[:-SCHEDULES_KEPT]:
        with contextlib.suppress(PermissionError):  # Windows keeps files that are mapped
            path.unlink()
