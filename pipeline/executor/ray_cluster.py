"""The Ray cluster of a run: connecting to it, and checking that some node can hold an encoder."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from pipeline.environment import cpu_model, gpu_model
from pipeline.errors import ConfigError, LatentmillError
from pipeline.executor.node_errors import START_ERRORS, NodeError, NodeErrors, own_process
from pipeline.executor.occupied_nodes import NODE_LABEL, occupied_nodes, span_text
from pipeline.executor.ray_connection import LOCAL, join_cluster
from pipeline.recipe import Run
from pipeline.storage.concurrency import running_beside

CHECK_EVERY_S = 5.0
"""Seconds between two looks at the cluster's nodes."""
FIRST_REPEAT_S = 60.0
"""Seconds after which the line about a wait is repeated for the first time; the pauses then double."""

T = TypeVar("T")


def connect_to_ray(run: Run) -> Any:
    """The ``ray`` module, connected to the cluster that the run names, or to a new one on this machine.

    Raises ConfigError if an encoder of a known size does not fit the new one; ``join_cluster`` has the errors of connecting.
    """
    import ray
    import ray.data.exceptions

    if not ray.is_initialized():
        join_cluster(run.ray_address)
        if run.ray_address == LOCAL and None not in (run.gpus, run.cpus):
            check_encoder_fits(run, ray.cluster_resources())
    return ray


def disconnect_from_ray() -> None:
    """Leave Ray, if this process has imported it. Its messages about ended encoders then come before our last line."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def device_model(run: Run, say: Callable[[str], None]) -> str:
    """Model of the device that the encoders compute on. ``say`` prints a line while no node has one."""
    if not run.encoder_gpus:
        return cpu_model()
    if run.local:
        return gpu_model()
    name: str = call_on_gpu_node(run, say, gpu_model)
    return name


def call_on_gpu_node(run: Run, say: Callable[[str], None], function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` on a node of the cluster, with the GPUs of an encoder. A node where it fails is left out.

    ``say`` prints a line while no node has the GPUs.

    Raises LatentmillError if it fails on every node, and if no node joins in time.
    """
    ray = connect_to_ray(run)
    errors = NodeErrors(lambda: nodes_for_encoders(run), lambda line: None)
    while True:
        labels = excluding(errors.unusable_nodes)
        caller = ray.remote(num_gpus=run.encoder_gpus, label_selector=labels)(_Caller).remote()
        try:
            with report_missing_nodes(run, say):
                result, error = ray.get(caller.call.remote(function, arguments), timeout=run.progress_timeout_s)
        except ray.exceptions.GetTimeoutError as timeout:
            raise no_progress_error(run) from timeout
        if error is None:
            return cast(T, result)
        errors.add(error)


class _Caller:
    """An actor that calls a function. Unlike a task it is in Ray's table while it waits for a node."""

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T | None, NodeError | None]:
        """Call a function. Its error comes back as a value, without the pages of a traceback."""
        try:
            return function(*arguments), None
        except START_ERRORS as error:
            return None, NodeError.of(error, unit="", started=False, **own_process())


def nodes_for_encoders(run: Run) -> set[str]:
    """Ids of the cluster's nodes that can hold an encoder."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and _fits(run, node["Resources"])}


def excluding(nodes: set[str]) -> dict[str, str] | None:
    """The label selector for Ray that leaves these nodes out; None if there are none."""
    return {NODE_LABEL: f"!in({','.join(sorted(nodes))})"} if nodes else None


def check_encoder_fits(run: Run, resources: dict[str, float]) -> None:
    """Raise ConfigError if an encoder needs more than ``resources``, which are those of the only node."""
    if not _fits(run, resources):
        raise ConfigError(
            f"an encoder of {_encoder_size(run)} does not fit this machine, for which Ray finds "
            f"{_node_size(resources)}: lower --cpus or --gpus, or name a cluster with --ray-address"
        )


def no_progress_error(run: Run) -> LatentmillError:
    """The error for a job in which no unit has ended for too long."""
    return LatentmillError(
        f"no unit has ended for {run.progress_timeout_s:.0f} s: no node has joined that can hold an encoder of "
        f"{_encoder_size(run)}, or a unit takes longer than this. Run the same command again, with a larger "
        "--progress-timeout-s if it may wait longer"
    )


@contextmanager
def report_missing_nodes(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Inside the ``with`` block, say when every node is too small for an encoder or in use. Ray waits silently."""
    if run.local:
        yield
        return
    with running_beside(partial(_watch_nodes, run, say), name="nodes", longest_s=CHECK_EVERY_S):
        yield


def _watch_nodes(run: Run, say: Callable[[str], None], done: threading.Event) -> None:
    import ray

    wait = NodeWait(run, say)
    while not done.wait(CHECK_EVERY_S):
        if ray.is_initialized():
            wait.check([node for node in ray.nodes() if node["Alive"]], time.monotonic())


class NodeWait:
    """The time for which a job waits for a node, with a line about it now and then."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        self._since_s: float | None = None
        self._next_line_s = 0.0

    def check(self, nodes: list[dict[str, Any]], now_s: float) -> None:
        """Say it if the job waits for one of these nodes, and once more when the wait is over."""
        reason = self._reason(nodes)
        if not reason:
            if self._since_s is not None:
                self._say("the wait for a node is over; going on")
            self._since_s = None
            return
        self._since_s = self._since_s if self._since_s is not None else now_s
        waited_s = now_s - self._since_s
        if waited_s == 0 or now_s >= self._next_line_s:
            self._next_line_s = now_s + max(FIRST_REPEAT_S, waited_s)
            span = f" {span_text(waited_s)}" if waited_s else ""
            self._say(
                f"waiting{span} for a {reason}, and ends after {self._run.progress_timeout_s:.0f} s without a finished "
                "unit (--progress-timeout-s)"
            )

    def _reason(self, nodes: list[dict[str, Any]]) -> str:
        """Say what the job waits for, why, and what ends the wait; empty if it does not wait."""
        run = self._run
        size = _encoder_size(run)
        fitting = [node for node in nodes if _fits(run, node["Resources"])]
        if not fitting:
            sizes = ", ".join(dict.fromkeys(_node_size(node["Resources"]) for node in nodes))
            return f"node with {size}; the cluster's nodes have {sizes}. The job goes on when one joins"
        holders = occupied_nodes(fitting, {"CPU": run.encoder_cpus, "GPU": run.encoder_gpus})
        end = "The job goes on when they are free again or another node joins"
        return f"free node with {size}; {holders}. {end}" if holders else ""


def _fits(run: Run, node: dict[str, float]) -> bool:
    return node.get("CPU", 0) >= run.encoder_cpus and node.get("GPU", 0) >= run.encoder_gpus


def _encoder_size(run: Run) -> str:
    return _size(run.encoder_cpus, run.encoder_gpus)


def _node_size(node: dict[str, float]) -> str:
    return _size(node.get("CPU", 0), node.get("GPU", 0))


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU and {gpus:g} GPU"
