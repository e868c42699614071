"""The resources of encoders where the user leaves them to ``auto``: how many there are, and their GPUs and CPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.environment import has_gpu_file, is_gpu, num_gpus
from pipeline.executor.ray_cluster import check_encoder_fits, connect_to_ray
from pipeline.executor.ray_connection import LOCAL
from pipeline.executor.resources.autoscaler import Nodes, read_node_types
from pipeline.recipe import Run
from pipeline.setting import available_cpus

MAX_CPUS_PER_GPU = 16
"""Largest number of CPUs that ``auto`` gives to an encoder with one GPU.

16 cores decode 1,400 frames per second of 1080p H.264 into 480x848, at the 90 frames per second and core that
``python -m tests.bench.decode`` measured. An H200 takes 80 with Open-Sora 1.2, and 1,309 with LTX-Video and ``--compile``,
the fastest of the VAEs that ``python -m tests.gpu`` measures.
"""


def resolve_resources(
    run: Run, environment: Mapping[str, str] | None, say: Callable[[str], None], *, start_ray: bool = True
) -> Run:
    """Replace every ``auto`` in the resources of a run. Returns the run as it is if there is none.

    ``environment`` is the one in which the output was begun, None for a new output. If ``start_ray`` is false and the run
    needs a new cluster on this machine, the machine's GPUs are counted without one. Raises the errors of ``connect_to_ray``.
    """
    if None not in (run.actors, run.gpus, run.cpus):
        return run
    is_here = run.local or run.ray_address == LOCAL
    ray = None if run.local or (is_here and not start_ray) else connect_to_ray(run)
    nodes = _nodes_of_this_machine(run, say) if ray is None else _nodes_of_cluster(ray)
    types: list[Nodes] | None = [] if is_here else read_node_types(ray)
    possible = [*nodes, *(types or [])]
    gpus = _choose_gpus(possible) if run.gpus is None else run.gpus
    if run.gpus is None and not gpus and types is None:
        say(
            "--gpus auto: no node of the cluster has a GPU, and Ray does not tell which nodes its autoscaler could add: "
            "encoding on CPUs. If nodes with GPUs are to join, stop the job and give --gpus 1"
        )
    cpus = _choose_cpus(possible, gpus, environment, say) if run.cpus is None else run.cpus
    actors = _count_encoders(nodes, types or [], gpus, cpus) if run.actors is None else run.actors
    resolved = dataclasses.replace(run, gpus=gpus, cpus=cpus, actors=actors)
    if ray is not None and is_here:
        check_encoder_fits(resolved, ray.cluster_resources())
    return resolved


def describe_encoders(run: Run) -> str:
    """One line about the encoders of a run whose resources are resolved."""
    encoders, cpus = 1 if run.local else run.max_encoders, run.encoder_cpus
    if run.encoder_gpus == 1:
        return f"one encoder per GPU: {encoders}, CPUs for each: {cpus}"
    if run.encoder_gpus:
        return f"encoders with {run.encoder_gpus:g} GPU each: {encoders}, CPUs for each: {cpus}"
    return f"encoders without GPU: {encoders}, CPUs for each: {cpus}"


def _nodes_of_this_machine(run: Run, say: Callable[[str], None]) -> list[Nodes]:
    """This machine, with the GPUs that PyTorch finds; with one of them if the run has only one encoder."""
    gpus = 0 if run.gpus == 0 else num_gpus()
    if run.gpus is None and not gpus and has_gpu_file():
        say("PyTorch finds no GPU that it can use, although this machine has a GPU's driver: encoding on CPUs")
    if run.local and gpus > 1:
        say(f"--local uses one of the {gpus} GPUs of this machine; leave it out to use all of them")
        gpus = 1
    return [Nodes(available_cpus(), gpus, 1)]


def _nodes_of_cluster(ray: Any) -> list[Nodes]:
    return [Nodes.of(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _choose_gpus(nodes: Sequence[Nodes]) -> float:
    """One GPU for each encoder if any node has one."""
    return 1.0 if any(node.gpus >= 1 and node.number for node in nodes) else 0.0


def _choose_cpus(
    nodes: Sequence[Nodes], gpus: float, environment: Mapping[str, str] | None, say: Callable[[str], None]
) -> int:
    """CPUs of an encoder: the number with which the output was begun, if there are as many, else those of a new output.

    The number of threads changes the last bits of what CPUs compute, and is part of the environment that units record.
    """
    largest = _largest_part(nodes, gpus)
    threads = int((environment or {}).get("threads", 0))
    if environment is not None and threads and is_gpu(environment.get("device", "")) == (gpus > 0):
        if threads <= largest:
            return threads
        say(
            f"the output was begun with {threads} CPUs for each encoder, and now there are {largest}: "
            "the last bits of its latents may differ"
        )
    if gpus:
        return min(largest, max(1, round(MAX_CPUS_PER_GPU * gpus)))
    return _busiest_size(nodes) or largest


def _largest_part(nodes: Sequence[Nodes], gpus: float) -> int:
    """Largest number of CPUs that an encoder can have: beside a GPU, its part of the CPUs on every node with GPUs."""
    if gpus:
        parts = [int(node.cpus * gpus / node.gpus) for node in nodes if node.number and node.gpus >= gpus]
        return max(1, min(parts, default=available_cpus()))
    return max((int(node.cpus) for node in nodes if node.number and node.cpus >= 1), default=available_cpus())


def _busiest_size(nodes: Sequence[Nodes]) -> int:
    """Size in CPUs of the nodes with which one encoder per node puts the most CPUs to work; 0 without nodes."""
    sizes = {int(node.cpus) for node in nodes if node.number and node.cpus >= 1}
    return max(sizes, key=lambda size: (size * sum(n.number for n in nodes if n.cpus >= size), size), default=0)


def _count_encoders(nodes: Sequence[Nodes], types: Sequence[Nodes], gpus: float, cpus: int) -> int:
    """Number of encoders: one per GPU, on CPUs one per node. Those that the autoscaler may add count as well."""

    def count(nodes: Sequence[Nodes]) -> int:
        if not gpus:
            return sum(node.number for node in nodes if node.cpus >= cpus)
        return sum(node.number * min(int(node.gpus / gpus + 1e-6), int(node.cpus / cpus)) for node in nodes)

    return max(1, count(nodes), count(types))
