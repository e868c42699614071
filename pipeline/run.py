"""The whole path from sources to a finished output. Start reading here.

sources -> plan of units -> encoders (one per GPU) -> unit reports -> index, summary, report page
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.encode.cleanup import clean_up
from pipeline.encode.encoder import ShardEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.environment import check_device, describe_environment, item_memory_bytes
from pipeline.errors import LatentmillError
from pipeline.executor.all_units import encode_units
from pipeline.executor.ray_cluster import device_model
from pipeline.executor.ray_map import map_tasks_of
from pipeline.executor.resources.automatic import describe_encoders, resolve_resources
from pipeline.output.dataset import open_dataset, recorded_environment, resolve_compute_dtype
from pipeline.output.index import Index
from pipeline.output.index_builder import complete_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.layout.dataset_card import write_card
from pipeline.output.members import check_members
from pipeline.output.plan import freeze_plan, missing_units
from pipeline.output.purges.beside import beside_purges
from pipeline.output.reject_retries import plan_retries
from pipeline.progress.formatting import byte_size, number
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.summary import Summary, summarize, summarize_stopped
from pipeline.recipe import Recipe, Run
from pipeline.report.page import write_page
from pipeline.sources.discovery import find_sources
from pipeline.sources.units import Plan, Source
from pipeline.storage.probe import open_output
from pipeline.storage.store import Store
from stvae.card import Card


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One call of ``encode``: an open output, its plan, and how to encode it."""

    store: Store
    plan: Plan
    settings: EncoderSettings
    sources: list[Source]
    environment: dict[str, str]
    """Environment in which the output was begun."""


def encode(
    recipe: Recipe,
    run: Run,
    card: Card,
    say: Callable[[str], None],
    show: Callable[[str], None] | None = None,
) -> Summary:
    """Encode every item of ``run.sources`` once into ``run.output``. It is safe to call this again after any failure.

    ``say`` prints a line. ``show``, if there is a terminal for it, replaces the progress line; it is called every second.
    Raises LatentmillError if the job cannot continue. What is committed stays.
    """
    job = _open_job(recipe, run, card, say)
    units = missing_units(job.store, job.plan)
    planned = len(job.plan.units)
    say(f"{number(planned, 'unit')} planned, {planned - len(units)} committed, {len(units) or 'nothing'} to do")
    if units:
        job = _with_resources(job, say)
        if job.settings.run.encoder_gpus or not job.settings.run.local:
            say(describe_encoders(job.settings.run))
        say(_describe_item_memory(job.settings.run))
    with Progress(job.settings.run, units, RunLog(job.store, job.settings.job), say, show) as progress:
        maker = EncoderMaker(run=job.settings.run, job=job.settings.job, make=partial(ShardEncoder, job.settings))
        for report in encode_units(job.store, units, maker, progress.heartbeats):
            progress.add(report)
            if progress.too_many_rejects():
                break

    def finish() -> Summary:
        summary = _summarize(job, progress)
        summary.save(job.store)
        write_page(job.store)
        return summary

    return beside_purges(job.store, finish)


def _with_resources(job: Job, say: Callable[[str], None]) -> Job:
    """The job with resources of encoders for ``auto``. ConfigError if the output was begun on another kind of device."""
    run = resolve_resources(job.settings.run, job.environment, say)
    check_device(job.store.url, job.environment, run)
    return dataclasses.replace(job, settings=dataclasses.replace(job.settings, run=run))


def _describe_item_memory(run: Run) -> str:
    """One line about the memory for the items that each encoder has fetched. Encoders may be on other machines than this."""
    here = byte_size(item_memory_bytes(run))
    if run.item_memory_bytes is not None:
        amount = f"{here} of memory in each encoder"
    elif run.local:
        amount = f"{here} of memory, a quarter of the encoder's"
    else:
        amount = f"a quarter of each encoder's part of its node's memory, which is {here} on this machine"
    return f"fetched videos may take {amount}; more goes to the disk of TMPDIR (--item-memory-gb)"


def _open_job(recipe: Recipe, run: Run, card: Card, say: Callable[[str], None]) -> Job:
    """Open the output and plan its units. Raises ConfigError if it was made with another recipe."""
    recipe.check_vae(card)
    check_members(recipe, card)
    sources = find_sources(run.sources)
    store = open_output(run.output, single_writer=run.single_writer)
    for note in sorted(store.notes):
        say(f"note: {note}")
    if (
        recorded_environment(store) is None
    ):  # a new output records device and data type, which follow from the resources
        run = resolve_resources(run, None, say)
    recipe = resolve_compute_dtype(recipe, run, store)
    dataset = open_dataset(store, recipe, card, lambda: describe_environment(run, device_model(run, say)))
    plan = freeze_plan(store, sources, recipe, say)
    if run.retry_rejects:
        plan = plan_retries(store, plan, run.retry_rejects, say)
    settings = EncoderSettings(
        recipe=recipe,
        run=run,
        columns=tuple(plan.columns),
        source_urls={source.name: source.url for source in sources},
        job=secrets.token_hex(6),
    )
    return Job(store=store, plan=plan, settings=settings, sources=sources, environment=dataset.environment)


def _summarize(job: Job, progress: Progress) -> Summary:
    """Finish the output and summarize it, or summarize why the job has stopped."""
    recipe, units = job.settings.recipe, len(job.plan.units)
    if progress.too_many_rejects():
        return summarize_stopped(job.store, recipe=recipe, units=units, progress=progress)
    index = complete_index(job.store, job.plan, clip_rows(job.plan, recipe), map_tasks_of(job.settings.run))
    problems = [*_describe(job, index), *clean_up(job.store, {unit.name for unit in job.plan.units}, index)]
    summary = summarize(job.store, index, job.settings.run, job.sources, recipe=recipe, units=units, progress=progress)
    summary.notes += [*sorted(job.store.notes), *problems]
    return summary


def _describe(job: Job, index: Index) -> list[str]:
    """Write the dataset card. Returns a sentence if that was not done; the output is complete without it."""
    try:
        note = write_card(job.store, job.settings.recipe, index)
    except (LatentmillError, OSError) as error:
        note = f"the dataset card was not written: {error}"
    return [note] if note else []
