"""Work on Ray that needs no encoder: a function over many items, such as the units of an export or ranges of the index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.errors import USER_ERRORS
from pipeline.executor.node_errors import NodeError, own_process
from pipeline.executor.ray_connection import join_cluster
from pipeline.recipe import Run
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.visible import make_foreign_text_visible


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
    """Yield ``work(item)`` of every item, in the order in which they end. Tasks of Ray Data run them, one CPU for each.

    ``work`` and the items are pickled by Ray; results must fit into JSON. Raises LatentmillError with the message of the
    first error of a task. Ray repeats the tasks of a node that is lost, so ``work`` must be safe to repeat.
    """
    import ray

    if not ray.is_initialized():
        join_cluster(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # byte, so that a result does not wait for others to fill a block
    rows = ray.data.from_items([{"item": [item]} for item in items], override_num_blocks=max(1, len(items)))
    for row in rows.map(partial(_call, work), num_cpus=num_cpus).iter_rows():
        result: dict[str, Any] = json.loads(row["result"])
        if "error" in result:
            raise NodeError(**result).exception("")
        yield result


def _call(work: Callable[[Any], dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """Run in a task: the result as JSON, or the error in the place of one."""
    make_foreign_text_visible()
    try:
        return {"result": json.dumps(work(row["item"][0]))}
    except (*USER_ERRORS, OSError) as error:
        return {"result": NodeError.of(error, unit="", started=True, **own_process()).to_json()}
