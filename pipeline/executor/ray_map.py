"""Work on Ray that needs no encoder: a function over many items, such as the units of an export or ranges of the index."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pipeline.errors import USER_ERRORS
from pipeline.executor.node_errors import NodeError, own_process
from pipeline.executor.ray_connection import join_cluster
from pipeline.recipe import Run
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.visible import make_foreign_text_visible

TASKS_AHEAD = 256
"""Number of tasks that wait for a CPU. An item of a task has up to 100 kB."""
MAX_RETRIES = 20
"""Number of times that Ray repeats a task whose process or node is lost."""


def map_tasks_of(run: Run) -> MapTasks:
    """The function that runs tasks where the encoders of a run are."""
    return map_tasks_at(None if run.local else run.ray_address)


def map_tasks_at(address: str | None) -> MapTasks:
    """The function that runs tasks on the Ray cluster at an address, or in this process (None). A single task stays here."""

    def map_here_or_on_ray(work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterable[dict[str, Any]]:
        if address is None or len(items) < 2:
            return map_in_process(work, items)
        return map_on_ray(address, work, items)

    return map_here_or_on_ray


def map_on_ray(
    address: str, work: Callable[[Any], dict[str, Any]], items: Sequence[Any], *, num_cpus: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Yield ``work(item)`` of every item, in the order in which they end. Tasks of Ray run them, one CPU for each.

    ``work`` and the items are pickled by Ray; results must fit into JSON. Raises LatentmillError with the message of the
    first error of a task. Ray repeats the tasks of a node that is lost, so ``work`` must be safe to repeat.
    """
    import ray

    if not ray.is_initialized():
        join_cluster(address)
    task = ray.remote(num_cpus=num_cpus, max_retries=MAX_RETRIES)(_call)
    shared, left = ray.put(work), iter(items)
    # Ray Data would wait up to 0.2 s between two tasks; these are started ahead, which also lets a cluster grow
    limit = int(ray.cluster_resources().get("CPU", 0) / num_cpus) + TASKS_AHEAD
    running = [task.remote(shared, item) for item in itertools.islice(left, limit)]
    try:
        while running:
            ended, running = ray.wait(running, num_returns=1)
            running += [task.remote(shared, item) for item in itertools.islice(left, 1)]
            result: dict[str, Any] = json.loads(ray.get(ended[0]))
            if "error" in result:
                raise NodeError(**result).exception("")
            yield result
    finally:
        for reference in running:
            ray.cancel(reference)


def _call(work: Callable[[Any], dict[str, Any]], item: Any) -> str:
    """Run in a task: the result as JSON, or the error in the place of one."""
    make_foreign_text_visible()
    try:
        return json.dumps(work(item))
    except (*USER_ERRORS, OSError) as error:
        return NodeError.of(error, unit="", started=True, **own_process()).to_json()
