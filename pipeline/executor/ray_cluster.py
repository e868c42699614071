"""The nodes of the Ray cluster that a run joins: whether one of them could hold an encoder."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.environment import cpu_model, gpu_model
from pipeline.errors import ConfigError, LatentmillError
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


def must_hold(run: Run, resources: dict[str, float]) -> None:
    """ConfigError unless the only node that there will be, which has ``resources``, could hold an encoder."""
    if not _holds(resources, run):
        raise ConfigError(
            f"an encoder of {_size(run.cpus, run.gpus)} does not fit this machine, for which Ray finds "
            f"{_size_of(resources)}: lower --cpus or --gpus, or name a cluster with --ray-address"
        )


def _watch(run: Run, say: Callable[[str], None], done: threading.Event) -> None:
    import ray

    waiting = False
    while not done.wait(LOOK_EVERY_S):
        if not ray.is_initialized():
            continue
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(_holds(node, run) for node in nodes):
            if waiting:
                say("a node has come; going on")
            waiting = False
        elif not waiting:
            waiting = True
            have = ", ".join(dict.fromkeys(map(_size_of, nodes)))
            say(f"waiting for a node with {_size(run.cpus, run.gpus)}; the cluster's nodes have {have}")


def _holds(node: dict[str, float], run: Run) -> bool:
    return node.get("CPU", 0) >= run.cpus and node.get("GPU", 0) >= run.gpus


def _size_of(node: dict[str, float]) -> str:
    return _size(node.get("CPU", 0), node.get("GPU", 0))


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU and {gpus:g} GPU"


def device_model(run: Run) -> str:
    """Model of what will compute, asked where the encoders will be."""
    if not run.gpus:
        return cpu_model()
    if run.local:
        return gpu_model()
    ray = connect(run)
    retry_call = ray.remote(num_gpus=run.gpus)(gpu_model).remote()
    try:
        name: str = ray.get(retry_call, timeout=run.progress_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise stalled(run) from error
    return name


def connect(run: Run) -> Any:
    """Ray, connected to the cluster that the run names or to one of its own."""
    import ray
    import ray.data.exceptions

    if not ray.is_initialized():
        ray.init(
            address=run.ray_address, include_dashboard=False if run.ray_address == "local" else None, log_to_driver=True
        )
        if run.ray_address == "local":
            must_hold(run, ray.cluster_resources())
    return ray


def disconnect() -> None:
    """Leave Ray, if this process has imported it: what it says of encoders that it ended comes before the last words."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
