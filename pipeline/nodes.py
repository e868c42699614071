"""The nodes of the Ray cluster that a run joins: whether one of them could hold an encoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import LatentmillError
from pipeline.recipe import Run

LOOK_EVERY_S = 5.0


@contextmanager
def watched(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, say when no node could hold an encoder, which Ray waits for in silence, and when one can."""
    if run.local:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run, say, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(LOOK_EVERY_S)


def stalled(run: Run) -> LatentmillError:
    """The error of a job in which nothing has moved for too long."""
    return LatentmillError(
        f"nothing has moved for {run.progress_timeout_s:.0f} s: no node has come that could hold an encoder of "
        f"{_size(run.cpus, run.gpus)}, or a unit takes longer than this. Run the same command again, with a larger "
        "--progress-timeout-s if it may wait for longer"
    )


def _watch(run: Run, say: Callable[[str], None], done: threading.Event) -> None:
    import ray

    waiting = False
    while not done.wait(LOOK_EVERY_S):
        if not ray.is_initialized():
            continue
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= run.cpus and node.get("GPU", 0) >= run.gpus for node in nodes):
            if waiting:
                say("a node has come; going on")
            waiting = False
        elif not waiting:
            waiting = True
            have = dict.fromkeys(_size(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
            say(f"waiting for a node with {_size(run.cpus, run.gpus)}; the cluster's nodes have {', '.join(have)}")


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU and {gpus:g} GPU"
