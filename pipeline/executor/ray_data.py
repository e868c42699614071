"""Encoders on Ray Data: one actor per GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.encode.encoder import UNITS_IN_FLIGHT
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.executor.heartbeats import HeartbeatChannel
from pipeline.executor.ray_actor import EncoderActor, read_report
from pipeline.executor.ray_cluster import connect_to_ray, no_progress_error
from pipeline.executor.tasks import Task, in_blocks, pack


def encode_on_ray(tasks: Sequence[Task], settings: EncoderSettings, heartbeats: Heartbeats) -> Iterator[UnitReport]:
    """Encode every task with a pool of actors. Yields each report as soon as its unit has ended.

    Raises LatentmillError if an encoder fails, or if no unit has ended for ``run.progress_timeout_s``.
    """
    run = settings.run
    ray = connect_to_ray(run)
    heartbeats.connect(HeartbeatChannel(settings.job).receive)
    _configure_ray_data(ray, run.progress_timeout_s)
    actors = min(run.actors, len(tasks))
    # The pool has a fixed size: Ray starts an encoder on every node that joins, and asks its autoscaler for missing
    # nodes. A growing pool would not ask, since Ray measures the need by tasks that wait in actors, and here none wait.
    pool = ray.data.ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=UNITS_IN_FLIGHT,
        max_concurrent_calls_per_actor=UNITS_IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    blocks = [{"tasks": pack(block)} for block in in_blocks(tasks, actors * UNITS_IN_FLIGHT)]
    rows = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(
            EncoderActor,
            batch_size=1,
            fn_constructor_kwargs={"settings": settings},
            compute=pool,
            num_cpus=run.cpus,
            num_gpus=run.gpus or None,
        )
        .iter_rows()
    )
    try:
        for row in rows:
            yield read_report(row["report"])
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise no_progress_error(run) from error


def _configure_ray_data(ray: Any, progress_timeout_s: float) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = progress_timeout_s
    context.max_consecutive_actor_init_deaths = 3
    context.target_max_block_size = 1  # byte, so that a report does not wait for others to fill a block
