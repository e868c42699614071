"""The whole path from latents of another trainer to a finished output.

files of the trainer -> plan of units -> importers -> unit reports -> index, summary, report page
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from functools import partial

from pipeline.encode.cleanup import clean_up
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.environment import cpu_model, describe_environment
from pipeline.errors import LatentmillError
from pipeline.executor.all_units import encode_units
from pipeline.executor.ray_map import map_tasks_of
from pipeline.executor.resources.automatic import resolve_resources
from pipeline.imports.captions import read_captions
from pipeline.imports.import_format import FileFormat
from pipeline.imports.importer import UnitImporter
from pipeline.imports.registry import IMPORT_FORMATS
from pipeline.imports.settings import PACKAGES, ImportOptions, ImportSettings, declared, import_recipe
from pipeline.imports.source_files import COLUMNS, form_said, open_source, plan_units
from pipeline.imports.unknown_facts import import_notes
from pipeline.output.dataset import open_dataset
from pipeline.output.index import Index
from pipeline.output.index_builder import complete_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.layout.dataset_card import write_card
from pipeline.output.plan import freeze_generation, missing_units, read_plan
from pipeline.output.purges.beside import beside_purges
from pipeline.progress.formatting import number
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.summary import Summary, summarize, summarize_stopped
from pipeline.recipe import Run
from pipeline.report.page import write_page
from pipeline.sources.units import Plan, Source
from pipeline.storage.probe import open_output
from pipeline.storage.store import Store
from stvae.card import Card


def import_latents(
    options: ImportOptions,
    run: Run,
    card: Card,
    say: Callable[[str], None],
    show: Callable[[str], None] | None = None,
) -> Summary:
    """Import every sample of the source in ``run.sources`` once into ``run.output``. It is safe to call this again.

    ``say`` prints a line. ``show`` replaces the progress line. Raises LatentmillError if the job cannot continue.
    """
    import_format, card = IMPORT_FORMATS[options.source_format], declared(card)
    source, source_notes = open_source(run.sources[0], import_format)
    recipe = import_recipe(options, card, None if isinstance(import_format, FileFormat) else form_said(source))
    store = open_output(run.output, single_writer=run.single_writer)
    for note in [*source_notes, *sorted(store.notes)]:
        say(f"note: {note}")
    open_dataset(store, recipe, card, lambda: describe_environment(run, cpu_model(), PACKAGES))
    settings = ImportSettings(
        recipe=recipe,
        run=run,
        card=card,
        source_format=options.source_format,
        urls={source.name: source.url},
        captions=options.captions,
        job=secrets.token_hex(6),
    )
    plan = _freeze_plan(store, source, settings)
    units = missing_units(store, plan)
    planned = len(plan.units)
    say(f"{number(planned, 'unit')} planned, {planned - len(units)} committed, {len(units) or 'nothing'} to do")
    if units:
        settings = dataclasses.replace(settings, run=resolve_resources(run, None, say))
    with Progress(settings.run, units, RunLog(store, settings.job), say, show) as progress:
        maker = EncoderMaker(run=settings.run, job=settings.job, make=partial(UnitImporter, settings))
        for report in encode_units(store, units, maker, progress.heartbeats):
            progress.add(report)
            if progress.too_many_rejects():
                break

    def finish() -> Summary:
        summary = _summarize(store, settings, plan, progress)
        summary.notes += source_notes
        summary.save(store)
        write_page(store)
        return summary

    return beside_purges(store, finish)


def _freeze_plan(store: Store, source: Source, settings: ImportSettings) -> Plan:
    """Record a generation of the plan for what the source has gained, if anything. Returns the whole plan."""
    import_format = IMPORT_FORMATS[settings.source_format]
    captions = read_captions(settings.captions).sha256 if settings.captions else ""
    while True:
        plan = read_plan(store)
        planned = [unit for unit in plan.units if unit.source == source.name]
        units = plan_units(source, planned, import_format, settings.recipe, len(plan.columns), captions)
        if not units:
            return plan
        freeze_generation(store, units, COLUMNS, len(plan.columns))
        # read the plan back, since another job may have recorded this generation first


def _summarize(store: Store, settings: ImportSettings, plan: Plan, progress: Progress) -> Summary:
    """Finish the output and summarize it, or summarize why the job has stopped."""
    recipe, units = settings.recipe, len(plan.units)
    if progress.too_many_rejects():
        return summarize_stopped(store, recipe=recipe, units=units, progress=progress)
    index = complete_index(store, plan, clip_rows(plan, recipe), map_tasks_of(settings.run))
    problems = [*_describe(store, settings, index), *clean_up(store, {unit.name for unit in plan.units}, index)]
    summary = summarize(store, index, settings.run, [], recipe=recipe, units=units, progress=progress)
    summary.notes += [*import_notes(store, index, settings), *sorted(store.notes), *problems]
    return summary


def _describe(store: Store, settings: ImportSettings, index: Index) -> list[str]:
    """Write the dataset card. Returns a sentence if that was not done; the output is complete without it."""
    try:
        note = write_card(store, settings.recipe, index)
    except (LatentmillError, OSError) as error:
        return [f"the dataset card was not written: {error}"]
    return [note] if note else []
