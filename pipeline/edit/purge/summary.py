"""Lines about a purge for people: its progress, its result, and what it would do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pipeline.edit.purge.purging import PurgeResult, Survey
from pipeline.output.layout.export_records import describe_exports
from pipeline.output.purges.purged_rows import columns_to_look_at, has_purgeable_data
from pipeline.output.purges.record import CHANGES, PROOF, purge_path, unfinished_purge
from pipeline.output.unit_metadata import unit_metadata_facts
from pipeline.progress.formatting import byte_size, number
from pipeline.progress.terminal import Terminal
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

SHOW_EVERY_S = 30.0
"""Seconds between two lines about the progress where lines cannot be rewritten."""
MAX_LISTED = 20
NOTHING = "nothing to purge: nothing is removed, or its data is gone already"


class PurgeProgress:
    """The line about a running purge."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._said_s = 0.0

    def show(self, line: str) -> None:
        """Show what the purge does now."""
        if self._terminal.rewrites:
            self._terminal.show(line)
        elif time.monotonic() - self._said_s >= SHOW_EVERY_S:
            self._said_s = time.monotonic()
            self._terminal.say(line)


def survey_lines(store: Store, survey: Survey) -> Iterator[str]:
    """Lines about what a purge would do."""
    unfinished = unfinished_purge(store)
    if unfinished is not None:
        yield f"{store.url}: {unfinished.name} was not finished and would be finished first"
    if survey.units_in_flight:
        yield (
            f"  {number(survey.units_in_flight, 'unit')} not committed: a purge is recorded, so that jobs commit nothing of "
            "what is removed"
        )
    if not survey.is_needed:
        yield f"{store.url}: {NOTHING}"
        return
    samples = rows = size_bytes = 0
    columns = list(dict.fromkeys([*columns_to_look_at(survey.edits), "shard"]))
    for content in map_concurrently(store.get, survey.paths):
        table = read_parquet(content, columns)
        purged = table.filter(has_purgeable_data(table, survey.edits))
        rows += len(purged)
        samples += len(purged) - purged["shard"].null_count
        if purged["shard"].null_count < len(purged):
            size_bytes += int(unit_metadata_facts(table)["size_bytes"])
    yield (
        f"{store.url}: would purge {number(samples, 'sample')} and {number(rows - samples, 'other row')} of edits "
        f"{survey.edits.generation} in {number(len(survey.paths), 'unit')}; {byte_size(size_bytes)} of tars to write again"
    )
    for export in describe_exports(store):
        yield f"  the export {export} stays as it is"
    for name in survey.layers:
        yield f"  the text layer {name} would lose the strings that no other sample uses"
    for name, count in survey.tags.items():
        yield f"  the tag {name} needs {number(count, 'sample')} of these: untag it, or give --despite-tags"


def result_lines(store: Store, results: Sequence[PurgeResult]) -> Iterator[str]:
    """Lines about purges that were carried out."""
    if not results:
        yield f"{store.url}: {NOTHING}"
    for result in results:
        proof, purge = result.proof, result.purge
        checked = proof["checked"]
        yield (
            f"{store.url}: {purge.name} has deleted {number(proof['samples'], 'sample')} of "
            f"{number(proof['units'], 'unit')} and {number(proof['deleted'], 'file')}"
        )
        yield (
            f"  checked: {number(checked['files'], 'file')}, {number(checked['shards'], 'shard')}, "
            f"{number(checked['rows'], 'row')}; none has data of what was removed up to edits {purge.edits}"
        )
        yield f"  proof: {purge_path(purge.number, PROOF)}, and what was replaced: {purge_path(purge.number, CHANGES)}"
        for what, names in (
            ("another sample with the same latent", proof["same_bytes"]),
            ("not written by Latentmill, or in use by a job, and not searched", proof["not_searched"]),
        ):
            yield from (f"  {name}: {what}" for name in names[:MAX_LISTED])
            if len(names) > MAX_LISTED:
                yield f"  ... and {len(names) - MAX_LISTED} more"
        for export in describe_exports(store):
            yield f"  not touched: the export {export}"
        yield "  not touched: other exports, caches of loaders, joined tables, old versions and backups of a store"
