"""The whole path from the captions of an output to a finished text layer.

captions -> plan of distinct strings in units -> encoders (one per GPU) -> unit reports -> index, summary, report page
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.encode.cleanup import clean_up
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.environment import check_device
from pipeline.errors import ConfigError
from pipeline.executor.all_units import encode_units
from pipeline.executor.ray_cluster import device_model
from pipeline.executor.ray_map import map_tasks_of
from pipeline.executor.resources.automatic import describe_encoders, resolve_resources
from pipeline.output.dataset import require_listed_dataset
from pipeline.output.index_builder import complete_index
from pipeline.output.layers.text_card import TextCard
from pipeline.output.layers.text_layer import TextLayer, open_text_layer, read_text_layer
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.output.layers.text_rows import text_rows
from pipeline.output.plan import missing_units
from pipeline.output.purges.beside import beside_purges
from pipeline.progress.formatting import number
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.text_summary import TextSummary, summarize_text
from pipeline.progress.work import STRINGS
from pipeline.report.page import write_page
from pipeline.sources.units import Plan
from pipeline.storage.concurrency import MapTasks
from pipeline.storage.probe import open_output
from pipeline.storage.store import Store
from pipeline.text.encoders.opening import open_renderer
from pipeline.text.handling import text_handling
from pipeline.text.planning import CaptionSource, PlanPreview, freeze_text_plan, preview_text_plan, special_ids
from pipeline.text.sample_captions import check_captions
from pipeline.text.settings import TextSettings, describe_text_environment
from pipeline.text.statistics import collect_statistics
from pipeline.text.string_encoder import StringEncoder


def encode_text(
    settings: TextSettings,
    captions: tuple[str, ...],
    joins: tuple[str, ...],
    say: Callable[[str], None],
    show: Callable[[str], None] | None = None,
) -> TextSummary:
    """Embed every distinct caption of an output once. It is safe to call this again after any failure.

    ``captions``: columns of the output's samples, or of the tables in ``joins``. ``say`` prints a line. ``show`` replaces
    the progress line. Raises LatentmillError if the job cannot continue. What is committed stays.
    """
    run = settings.run
    output = open_output(run.output, single_writer=run.single_writer)
    require_listed_dataset(output)
    source = _caption_source(settings, output, captions, joins)
    for note in sorted(output.notes):
        say(f"note: {note}")
    store = settings.open_layer()
    if _is_new(store):  # a new layer records device and data type, which follow from the resources
        check_captions(output, captions, source.handling.columns, joins)
        settings = _with_resources(settings, None, say)
    settings = _resolve(settings, store, source.renderer.card)
    layer = open_text_layer(
        store,
        partial(_layer, settings.recipe, source),
        lambda: describe_text_environment(settings.run, device_model(settings.run, say)),
    )
    plan = freeze_text_plan(store, layer, source)
    units = missing_units(store, plan)
    planned = len(plan.units)
    strings = sum(len(unit.ordinals) for unit in units)
    todo = f"{len(units)} to do with {number(strings, 'string')}" if units else "nothing to do"
    say(f"{number(planned, 'unit')} planned, {planned - len(units)} committed, {todo}")
    if units:
        settings = _with_resources(settings, layer.environment, say)
        check_device(store.url, layer.environment, settings.run)
        say(describe_encoders(settings.run))
    with Progress(settings.run, units, RunLog(store, settings.job), say, show, STRINGS) as progress:
        maker = EncoderMaker(run=settings.run, job=settings.job, make=partial(StringEncoder, settings))
        for report in encode_units(store, units, maker, progress.heartbeats):
            progress.add(report)
            if progress.too_many_rejects():
                break

    def finish() -> TextSummary:
        summary = _summarize(store, layer, captions, plan, progress, map_tasks_of(settings.run))
        summary.save(store)
        write_page(output)
        return summary

    return beside_purges(output, finish)


def preview_text(settings: TextSettings, captions: tuple[str, ...], joins: tuple[str, ...]) -> PlanPreview:
    """The strings that ``encode_text`` would embed. Reads all captions, and writes nothing."""
    output = Store(settings.run.output)
    require_listed_dataset(output)
    source = _caption_source(settings, output, captions, joins)
    store = settings.open_layer()
    settings = _resolve(settings, store, source.renderer.card)
    layer = _layer(settings.recipe, source, {})
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()
        return preview_text_plan(store, layer, source, lambda: Path(folder, str(next(numbers))))


def _is_new(layer: Store) -> bool:
    try:
        read_text_layer(layer)
    except FileNotFoundError:
        return True
    return False


def _with_resources(
    settings: TextSettings, environment: Mapping[str, str] | None, say: Callable[[str], None]
) -> TextSettings:
    """The settings with resources of encoders for ``auto``. ``environment``: that in which the layer was begun."""
    return dataclasses.replace(settings, run=resolve_resources(settings.run, environment, say))


def _caption_source(
    settings: TextSettings, output: Store, captions: tuple[str, ...], joins: tuple[str, ...]
) -> CaptionSource:
    if missing := [name for name in ("transformers", "tokenizers") if find_spec(name) is None]:
        raise ConfigError(f"text layers need {' and '.join(missing)}: pip install '.[text]'")
    return CaptionSource(
        output=output,
        captions=captions,
        joins=joins,
        handling=text_handling(settings.recipe),
        renderer=open_renderer(settings.encoder, settings.options),
    )


def _resolve(settings: TextSettings, store: Store, card: TextCard) -> TextSettings:
    """Fill in what the recipe leaves open: the encoder, its lengths, and the compute type of this layer or this hardware."""
    recipe = settings.recipe
    lengths = recipe.lengths or card.lengths
    if lengths[-1] != card.lengths[-1] or (len(card.lengths) == 1 and lengths != card.lengths):
        what = "one length only" if len(card.lengths) == 1 else "lengths that end with"
        raise ConfigError(
            f"--lengths: {card.family} takes {what} {card.lengths[-1]}, got {','.join(map(str, lengths))}"
        )
    recipe = dataclasses.replace(recipe, encoder=card.sha256, lengths=lengths)
    if recipe.compute_dtype == "auto":
        try:
            dtype = read_text_layer(store).recipe.compute_dtype
        except FileNotFoundError:
            dtype = settings.run.auto_compute_dtype
        recipe = dataclasses.replace(recipe, compute_dtype=dtype)
    return dataclasses.replace(settings, recipe=recipe)


def _layer(recipe: TextRecipe, source: CaptionSource, environment: dict[str, str]) -> TextLayer:
    empty_id, null_id = special_ids(source.renderer)
    return TextLayer(
        recipe=recipe, card=source.renderer.card, environment=environment, empty_id=empty_id, null_id=null_id
    )


def _summarize(
    store: Store,
    layer: TextLayer,
    captions: tuple[str, ...],
    plan: Plan,
    progress: Progress,
    map_tasks: MapTasks,
) -> TextSummary:
    """Finish the layer and summarize it, or summarize why the job has stopped."""
    summarized = partial(
        summarize_text,
        store,
        recipe=layer.recipe.fingerprint,
        encoder=layer.card.family,
        units=len(plan.units),
        progress=progress,
    )
    if progress.too_many_rejects():
        return summarized(statistics=None)
    index = complete_index(store, plan, text_rows(layer.card), map_tasks)
    problems = clean_up(store, {unit.name for unit in plan.units}, index)
    summary = summarized(statistics=collect_statistics(store, layer, index, plan.units))
    empty = [name for name in captions if name not in summary.statistics.captions]
    summary.notes += [f"no sample has a caption in the column '{name}'" for name in empty]
    summary.size_bytes = index.totals.size_bytes
    summary.notes += [*sorted(store.notes), *problems]
    return summary


def new_job_name() -> str:
    """A random name for a job, in the records of its attempts."""
    return secrets.token_hex(6)
