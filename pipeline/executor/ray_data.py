"""Encoders on Ray: one actor per GPU through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.encode.encoder import UNITS_IN_FLIGHT
from pipeline.encode.unit_report import UnitReport, Watch
from pipeline.executor.heartbeats import HeartbeatBoard
from pipeline.executor.ray_actor import EncoderActor, read_report
from pipeline.executor.ray_cluster import connect, stalled
from pipeline.executor.tasks import Task, in_blocks, pack
from pipeline.recipe import Run


def encode_on_ray(tasks: list[Task], run: Run, arguments: dict[str, Any], watch: Watch) -> Iterator[UnitReport]:
    """One actor per GPU through Ray Data; only reports come back, each as soon as its unit has ended."""
    ray = connect(run)
    actors = min(run.actors, len(tasks))
    watch(HeartbeatBoard(arguments["job"]).look)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = run.progress_timeout_s
    context.max_consecutive_actor_init_deaths = 3
    context.target_max_block_size = 1  # byte: a report does not wait for those of the same block
    # A pool of one size: Ray starts an encoder on every node that comes, and asks its autoscaler for those that lack.
    # One that may grow does not, since Ray measures need by tasks that wait in actors, and here none does.
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
            fn_constructor_kwargs=arguments,
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
        raise stalled(run) from error
