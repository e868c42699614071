"""Make all ranks of a training job use one version of an output, and notice if they do not, or if it has changed.

Rank 0 leaves notes in the key-value store of ``torch.distributed``, and the other ranks read them. Rank 0 never waits, so
a set that only rank 0 opens does no harm. Nothing happens without a process group.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from pipeline.errors import ConfigError

WAIT_S = 60.0
"""Time that a rank waits for rank 0 to open the same output or, after other batches, to make the same batches."""
WAIT_FOR_ANY_S = 1800.0
"""Time that a rank waits for the first batches of rank 0."""
POLL_S = 0.05

_opened: Counter[tuple[int, str]] = Counter()
"""Number of times that this process has opened each version of an output, by process group, URL and version."""


def adopt_version(url: str, wanted: str | None, version: str) -> str:
    """Return the version of the output that rank 0 found when it opened it for the same time.

    wanted: the tag or the version that was asked for; None for the newest one. version: what this rank found. Every rank
    counts how often it has opened this URL with this ``wanted``. If rank 0 does not open it in time, a warning says so and
    this rank keeps its own version.
    """
    store = _shared_store()
    if store is None:
        return version
    opened = url if wanted is None else f"{url}@{wanted}"
    number = _opened[id(store), opened]
    _opened[id(store), opened] += 1
    key = f"latentmill/version/{number}/{opened}"
    if torch.distributed.get_rank() == 0:
        store.set(key, version)
        return version
    if _appears(store, key, WAIT_S):
        return str(store.get(key).decode())
    warnings.warn(
        f"rank 0 did not open {url} within {WAIT_S:.0f} s; this rank uses the version that it found", stacklevel=4
    )
    return version


def describe_growth(url: str, saved: str | None, here: str | None, samples: int) -> str:
    """Say, if an output has changed since a state was saved, which versions there are to go on with; else return no text.

    saved, here: versions of the state and of the dataset, if there are. samples: number of samples here.
    """
    if saved in (None, here):
        return ""
    return (
        f"The output has changed since the state was saved: the state belongs to version {saved}, and this is "
        f"{'an unfinished job' if here is None else f'version {here}'} with {samples} samples. To go on exactly, open that "
        f"version: LatentDataset({url!r}, version={saved!r}). To train on the samples of this one, begin an epoch with "
        "them: load_state_dict(state, new_epoch=True). "
    )


def announce_schedule(schedule: str) -> Callable[[], None]:
    """Tell the other ranks, from rank 0, how its batches are made. Returns a check to make before the first batch.

    The check raises ConfigError on other ranks, unless rank 0 has announced the same schedule.
    """
    store = _shared_store()
    if store is not None and torch.distributed.get_rank() == 0:
        store.set(f"latentmill/schedule/{schedule}", "")
        store.set("latentmill/latest", schedule)
    return functools.cache(functools.partial(_check_schedule, schedule))


def _check_schedule(schedule: str) -> None:
    store = _shared_store()
    if store is None or torch.distributed.get_rank() == 0:
        return
    if _appears(store, "latentmill/latest", WAIT_FOR_ANY_S) and _appears(
        store, f"latentmill/schedule/{schedule}", WAIT_S
    ):
        return
    theirs = store.get("latentmill/latest").decode() if store.check(["latentmill/latest"]) else "none"
    raise ConfigError(
        f"rank {torch.distributed.get_rank()} and rank 0 would train on different batches: {schedule} here, {theirs} on "
        "rank 0. Open the same output with the same filter and options on all ranks. If the output is still growing, open "
        "it after init_process_group, so that all ranks take the version that rank 0 finds"
    )


def _shared_store() -> Any:
    """Return the key-value store of the default process group; None without one, or if this process is alone in it."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return distributed.distributed_c10d._get_default_store()


def _appears(store: Any, key: str, wait_s: float) -> bool:
    """Wait until a key is there. Returns False after ``wait_s``."""
    deadline_s = time.monotonic() + wait_s
    while not store.check([key]):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True
