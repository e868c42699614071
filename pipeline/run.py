"""The whole path, from sources to a finished output. Start reading here.

sources -> plan -> [Ray Data] ShardEncoder, one actor per GPU -> reports -> index, summary, page
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from pipeline.encode.attempts import begun_units, remove_attempts
from pipeline.encode.unit_report import UnitReport, Watch
from pipeline.environment import describe_environment
from pipeline.errors import StoreError
from pipeline.executor.local import encode_locally
from pipeline.executor.ray_cluster import device_model
from pipeline.executor.ray_data import encode_on_ray
from pipeline.executor.tasks import in_order
from pipeline.output.dataset import open_dataset, resolve_compute_dtype
from pipeline.output.index import Index, newest_index
from pipeline.output.index_builder import build_index, remove_orphans
from pipeline.output.members import check_members
from pipeline.output.plan import committed_units, freeze_plan
from pipeline.output.reject_retries import plan_retries
from pipeline.output.unit_metadata import unit_metadata_path, unit_of
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.summary import Summary, summarize, summarize_stopped
from pipeline.recipe import Recipe, Run
from pipeline.report.page import write_page
from pipeline.sources.discovery import find_sources
from pipeline.sources.units import Plan, Unit
from pipeline.storage.parquet import schema_to_text
from pipeline.storage.store import Store
from stvae.card import Card


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
    recipe.check_vae(card)
    check_members(recipe, card)
    sources = find_sources(run.sources)
    store = Store(run.output, single_writer=run.single_writer)
    store.probe()
    recipe = resolve_compute_dtype(recipe, run, store)
    open_dataset(store, recipe, card, lambda: describe_environment(run, device_model(run)))
    plan = freeze_plan(store, sources, recipe)
    if run.retry_rejects:
        plan = plan_retries(store, plan, run.retry_rejects, say)
    todo = _missing(plan, store)
    say(f"{len(plan.units)} units planned, {len(plan.units) - len(todo)} committed, {len(todo) or 'nothing'} to do")
    job = secrets.token_hex(6)
    with Progress(run, todo, RunLog(store, job), say, show) as progress:
        urls = {source.name: source.url for source in sources}
        for report in _encode_units(todo, store, recipe, run, plan, urls, job, progress.watch):
            progress.add(report)
            if progress.too_many_rejects():
                break
    if progress.too_many_rejects():
        summary = summarize_stopped(store, recipe=recipe.fingerprint, units=len(plan.units), progress=progress)
    else:
        index = _finish(store, plan, recipe)
        summary = summarize(store, index, run, recipe=recipe.fingerprint, units=len(plan.units), progress=progress)
    summary.save(store)
    write_page(store)
    return summary


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
) -> Iterator[UnitReport]:
    """Reports of every unit. Those that other jobs had begun are asked for again at the end."""
    columns = [schema_to_text(schema) for schema in plan.columns]
    arguments = {"recipe": recipe.to_json(), "run": run.to_json(), "columns": columns, "urls": urls, "job": job}
    while units:
        left = set()
        for report in (encode_locally if run.local else encode_on_ray)(
            in_order(units, begun_units(store), job), run, arguments, watch
        ):
            if report.outcome == "left":
                left.add(report.unit)
            else:
                yield report
        units = [unit for unit in units if unit.name in left]


def _finish(store: Store, plan: Plan, recipe: Recipe) -> Index:
    """Make sure that every planned unit is committed, then build the index and remove what dead attempts left."""
    for unit in _missing(plan, store):  # a listing may lag behind
        if store.size(unit_metadata_path(unit.name)) is None:
            raise StoreError(f"unit {unit.name} is not committed; run the same command again")
    index = newest_index(store)
    if index is None or not index.covers(plan):
        index = build_index(store, plan, recipe)
    units = {unit.name for unit in plan.units}
    remove_orphans(store, units, index)
    store.abort_uploads("shards", lambda path: unit_of(path) in units)
    remove_attempts(store, units)
    store.sweep()
    return index
