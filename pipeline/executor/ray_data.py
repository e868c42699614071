"""Encoders on Ray Data: one actor per GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.encode.unit_encoder import UNITS_IN_FLIGHT, EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.executor.heartbeats import HeartbeatChannel
from pipeline.executor.memory_kills import limited_memory_kills
from pipeline.executor.node_errors import NodeErrors, read_row
from pipeline.executor.ray_actor import EncoderActor
from pipeline.executor.ray_cluster import (
    connect_to_ray,
    excluding,
    no_progress_error,
    nodes_for_encoders,
    report_missing_nodes,
)
from pipeline.executor.tasks import Task, in_blocks, pack


def encode_on_ray(tasks: Sequence[Task], maker: EncoderMaker, heartbeats: Heartbeats) -> Iterator[UnitReport]:
    """Encode every task with a pool of actors. Yields each report as soon as its unit has ended.

    Units that a node could not encode go to other nodes. Raises LatentmillError if no node is left for a unit, or if no unit
    has ended for ``run.progress_timeout_s``.
    """
    run = maker.run
    ray = connect_to_ray(run)
    channel = HeartbeatChannel(maker.job)
    heartbeats.connect(channel.receive, channel.stop)
    _configure_ray_data(ray, run.progress_timeout_s)
    errors = NodeErrors(lambda: nodes_for_encoders(run), heartbeats.say)
    remaining = {task.unit.name: task for task in tasks}
    with report_missing_nodes(run, heartbeats.say), limited_memory_kills(run, heartbeats.say) as kills:
        while remaining:
            names, excluded_nodes = errors.next_round(list(remaining))
            tasks = [task for name, task in remaining.items() if name in names]
            rows = _start_pool(ray, tasks, maker, excluded_nodes)
            without_encoder: set[str] = set()
            try:
                for row in rows:
                    result = read_row(row["report"])
                    if isinstance(result, UnitReport):
                        errors.succeeded(result)
                        kills.unit_ended()
                        del remaining[result.unit]
                        yield result
                        continue
                    errors.add(result)
                    without_encoder |= set() if result.started else {result.encoder}
                    if len(without_encoder) == min(run.max_encoders, len(names & remaining.keys())):
                        break  # no encoder of this pool works; the next pool is placed on other nodes
            except ray.data.exceptions.ExecutionTimeoutError as error:
                raise no_progress_error(run) from error


def _start_pool(ray: Any, tasks: Sequence[Task], maker: EncoderMaker, excluded_nodes: set[str]) -> Iterator[Any]:
    """Start actors on other nodes than ``excluded_nodes``. Returns the rows of their reports, one per task, as they come."""
    run = maker.run
    actors = min(run.max_encoders, len(tasks))
    # The pool has a fixed size: Ray starts an encoder on every node that joins, and asks its autoscaler for missing
    # nodes. A growing pool would not ask, since Ray measures the need by tasks that wait in actors, and here none wait.
    pool = ray.data.ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=UNITS_IN_FLIGHT,
        max_concurrent_calls_per_actor=UNITS_IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    blocks = [{"tasks": pack(block)} for block in in_blocks(tasks, actors * UNITS_IN_FLIGHT)]
    rows: Iterator[Any] = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(
            EncoderActor,
            batch_size=1,
            fn_constructor_kwargs={"maker": maker},
            compute=pool,
            num_cpus=run.encoder_cpus,
            num_gpus=run.encoder_gpus or None,
            label_selector=excluding(excluded_nodes),
        )
        .iter_rows()
    )
    return rows


def _configure_ray_data(ray: Any, progress_timeout_s: float) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = progress_timeout_s
    context.max_consecutive_actor_init_deaths = 3
    context.target_max_block_size = 1  # byte, so that a report does not wait for others to fill a block
