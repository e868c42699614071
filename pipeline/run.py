"""The whole path, from sources to a finished output. Start reading here.

sources -> plan -> [Ray Data] ShardEncoder, one actor per GPU -> reports -> index, summary, page
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipeline.encode.attempts import begun_units, remove_attempts
from pipeline.encode.encoder import UNITS_IN_FLIGHT, Report, ShardEncoder
from pipeline.errors import StoreError
from pipeline.executor.heartbeats import Board
from pipeline.executor.ray_actor import EncoderActor, read_report
from pipeline.executor.ray_cluster import must_hold, stalled
from pipeline.executor.tasks import Task, in_blocks, in_order, pack
from pipeline.output.dataset import cpu_model, describe_environment, gpu_model, open_dataset, read_dataset
from pipeline.output.index import Index, build_index, newest_index, remove_orphans, unit_of
from pipeline.output.plan import Plan, Unit, committed_units, freeze_plan, schema_to_text
from pipeline.output.reject_retries import plan_retries
from pipeline.output.shard_writer import sidecar_path
from pipeline.progress.progress import Progress, Pulse
from pipeline.progress.run_log import Records
from pipeline.progress.summary import Summary, stopped, summarize
from pipeline.recipe import Recipe, Run
from pipeline.report.page import write_page
from pipeline.sources.discovery import find_sources
from pipeline.storage.store import Store
from stvae.card import Card

Watch = Callable[[Callable[[], Iterable[Pulse]]], None]
"""Takes what tells what the encoders are doing."""


def encode(
    recipe: Recipe,
    run: Run,
    card: Card,
    say: Callable[[str], None],
    show: Callable[[str], None] | None = None,
) -> Summary:
    """Encode every item of ``run.sources`` once into ``run.output``. Safe to call again after anything.

    ``say`` gets lines for people, ``show`` a line of progress every second, if there is a terminal for it.
    Raises LatentmillError where the job cannot go on; what is committed stays.
    """
    recipe.check_codec(card)
    sources = find_sources(run.sources)
    store = Store(run.output, single_writer=run.single_writer)
    store.probe()
    recipe = resolved(recipe, run, store)
    open_dataset(store, recipe, card, lambda: describe_environment(run, _device(run)))
    plan = freeze_plan(store, sources, recipe)
    if run.retry_rejects:
        plan = plan_retries(store, plan, run.retry_rejects, say)
    todo = _missing(plan, store)
    say(f"{len(plan.units)} units planned, {len(plan.units) - len(todo)} committed, {len(todo) or 'nothing'} to do")
    job = secrets.token_hex(6)
    with Progress(run, todo, Records(store, job), say, show) as progress:
        urls = {source.name: source.url for source in sources}
        for report in _encode_units(todo, store, recipe, run, plan, urls, job, progress.watch):
            progress.add(report)
            if progress.too_many_rejects():
                break
    if progress.too_many_rejects():
        summary = stopped(store, recipe=recipe.fingerprint, units=len(plan.units), progress=progress)
    else:
        index = _finish(store, plan)
        summary = summarize(store, index, run, recipe=recipe.fingerprint, units=len(plan.units), progress=progress)
    summary.save(store)
    write_page(store)
    return summary


def resolved(recipe: Recipe, run: Run, store: Store) -> Recipe:
    """The recipe with ``auto`` decided: as this output was begun, else bfloat16 on GPUs and float32 without."""
    if recipe.compute_dtype != "auto":
        return recipe
    try:
        return dataclasses.replace(recipe, compute_dtype=read_dataset(store).recipe.compute_dtype)
    except FileNotFoundError:
        return dataclasses.replace(recipe, compute_dtype=run.auto_compute_dtype)


def _device(run: Run) -> str:
    """Model of what will compute, asked where the encoders will be."""
    if not run.gpus:
        return cpu_model()
    if run.local:
        return gpu_model()
    ray = connect(run)
    asked = ray.remote(num_gpus=run.gpus)(gpu_model).remote()
    try:
        name: str = ray.get(asked, timeout=run.progress_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise stalled(run) from error
    return name


def _missing(plan: Plan, store: Store) -> list[Unit]:
    committed = committed_units(store)
    return [unit for unit in plan.units if unit.name not in committed]


def _encode_units(
    units: list[Unit],
    store: Store,
    recipe: Recipe,
    run: Run,
    plan: Plan,
    urls: dict[str, str],
    job: str,
    watch: Watch,
) -> Iterator[Report]:
    """Reports of every unit. Those that other jobs had begun are asked for again at the end."""
    columns = [schema_to_text(schema) for schema in plan.columns]
    arguments = {"recipe": recipe.to_json(), "run": run.to_json(), "columns": columns, "urls": urls, "job": job}
    while units:
        left = set()
        for report in (_in_process if run.local else _on_ray)(
            in_order(units, begun_units(store), job), run, arguments, watch
        ):
            if report.outcome == "left":
                left.add(report.unit)
            else:
                yield report
        units = [unit for unit in units if unit.name in left]


def _in_process(tasks: list[Task], run: Run, arguments: dict[str, Any], watch: Watch) -> Iterator[Report]:
    """The same encoder as on Ray, in this process: two units in flight."""
    encoder = ShardEncoder(**arguments)
    watch(lambda: [encoder.pulse()])
    pool = ThreadPoolExecutor(UNITS_IN_FLIGHT)
    try:
        for done in as_completed([pool.submit(encoder.encode_unit, *task) for task in tasks]):
            yield done.result()
    finally:
        encoder.close()  # first, so that after a failure or Ctrl-C the units in flight end at once
        pool.shutdown(cancel_futures=True)


def _on_ray(tasks: list[Task], run: Run, arguments: dict[str, Any], watch: Watch) -> Iterator[Report]:
    """One actor per GPU through Ray Data; only reports come back, each as soon as its unit has ended."""
    ray = connect(run)
    actors = min(run.actors, len(tasks))
    watch(Board(arguments["job"]).look)
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


def _finish(store: Store, plan: Plan) -> Index:
    """The index over every sidecar, once every planned unit has one."""
    for unit in _missing(plan, store):  # a listing may lag behind
        if store.size(sidecar_path(unit.name)) is None:
            raise StoreError(f"unit {unit.name} is not committed; run the same command again")
    index = newest_index(store)
    if index is None or index.generation < len(plan.columns) - 1:
        index = build_index(store, plan)
    units = {unit.name for unit in plan.units}
    remove_orphans(store, units, index)
    store.abort_uploads("shards", lambda path: unit_of(path) in units)
    remove_attempts(store, units)
    store.sweep()
    return index
