"""The log of an output: its plan, jobs, indexes, edits and tags, each with who made what when, as far as it is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone

from pipeline.edit.tags import count_samples
from pipeline.output.edits.edits import Edits, newest_edits, read_edits
from pipeline.output.edits.version import edits_of, read_tag, tag_names
from pipeline.output.index import Index, PurgedIndex, last_index_number, newest_index, read_index_entry
from pipeline.output.plan import committed_units, plan_path, read_plan
from pipeline.output.purges.record import is_finished, newest_purge, read_proof, read_purge
from pipeline.progress.formatting import number
from pipeline.report.history import read_history
from pipeline.storage.store import Store


def log_lines(store: Store) -> Iterator[str]:
    """Yield the log for people, oldest first in each part."""
    edits = newest_edits(store)
    yield from _plan_lines(store)
    yield from _job_lines(store)
    yield from _index_lines(store, edits)
    yield from _edit_lines(store, edits)
    yield from _purge_lines(store)
    yield from _tag_lines(store)


def _plan_lines(store: Store) -> Iterator[str]:
    plan, committed = read_plan(store), committed_units(store)
    planned = Counter(unit.generation for unit in plan.units)
    done = Counter(unit.generation for unit in plan.units if unit.name in committed)
    for generation in range(len(plan.columns)):
        retries = any(unit.retries for unit in plan.units if unit.generation == generation)
        what = "of rejects tried again, " if retries else ""
        written = _time_of_file(store, plan_path(generation))
        yield f"plan   {generation:>4}{written}  {number(planned[generation], 'unit')} {what}{done[generation]} committed"


def _job_lines(store: Store) -> Iterator[str]:
    for job in read_history(store):
        began = "" if job.started_s is None else _time(datetime.fromtimestamp(job.started_s, timezone.utc))
        by = f"  {job.by}" if job.by else ""
        yield f"job    {job.name}{began}{by}  {number(job.units, 'unit')}, {number(job.samples, 'sample')}"


def _index_lines(store: Store, edits: Edits) -> Iterator[str]:
    newest, last = newest_index(store), last_index_number(store)
    for generation in range(0 if last is None else last + 1):
        index = read_index_entry(store, generation)
        if isinstance(index, PurgedIndex):
            yield f"index  {generation:>4}  {'removed' if index.parts else 'taken'} by purge {index.purge}"
            continue
        covers = number(index.plan_generations, "generation")
        outcomes = (("sample", index.num_samples), ("skip", index.num_skips), ("reject", index.num_rejects))
        counts = ", ".join(number(count, noun) for noun, count in outcomes)
        left = ""
        if len(edits.rows) and index == newest:
            left = f"; {number(count_samples(store, index, edits), 'sample')} with the newest edits"
        written = _time_of_file(store, index.path)
        yield f"index  {generation:>4}{written}  {counts}, {covers} of the plan{left}"


def _edit_lines(store: Store, edits: Edits) -> Iterator[str]:
    for generation in range(0 if edits.generation is None else edits.generation + 1):
        facts = read_edits(store, generation).facts
        reason = f": {facts['reason']}" if facts["reason"] else ""
        yield (
            f"edits  {generation:>4}  {facts['time']}  {facts['by']}  {facts['action']} {facts['selection']}, "
            f"{number(int(facts['count']), 'row')}{reason}"
        )


def _purge_lines(store: Store) -> Iterator[str]:
    newest = newest_purge(store)
    for n in range(0 if newest is None else newest.number + 1):
        purge = read_purge(store, n)
        done = "not finished: run purge again"
        if is_finished(store, purge):
            proof = read_proof(store, purge)
            done = f"{number(proof['samples'], 'sample')} in {number(proof['units'], 'unit')}, finished {proof['finished']}"
        yield f"purge  {n:>4}  {purge.time}  {purge.by}  edits {purge.edits}: {done}"


def _tag_lines(store: Store) -> Iterator[str]:
    for name in tag_names(store):
        tag = read_tag(store, name)
        edits = "no edits" if tag.edits is None else f"edits {tag.edits}"
        entry = read_index_entry(store, tag.index)
        left = count_samples(store, entry, edits_of(store, tag.version)) if isinstance(entry, Index) else 0
        lost = f", {tag.samples - left} of them purged" if left < tag.samples else ""
        yield f"tag    {name}  {tag.time}  {tag.by}  index {tag.index}, {edits}, {number(tag.samples, 'sample')}{lost}"


def _time_of_file(store: Store, path: str) -> str:
    """When a file was written, after two spaces; empty if the store does not tell. A copy of an output has other times."""
    files, root = store.client
    try:
        return _time(files.modified(f"{root.rstrip('/')}/{path}"))
    except (OSError, NotImplementedError):
        return ""


def _time(time: datetime) -> str:
    return time.astimezone(timezone.utc).strftime("  %Y-%m-%dT%H:%M:%SZ")
