"""The flow of a purge. Start reading here.

edits -> units with removed rows -> record -> new tars and unit metadata -> indexes -> layers -> changes -> reports ->
deletion -> check -> proof

Each step may be repeated, and follows from the record alone: a purge that was killed is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.edit.purge.changes import (
    Changes,
    dead_files,
    dead_parts,
    delete_old,
    read_changes,
    record_changes,
    replaced_units,
)
from pipeline.edit.purge.indexes import purge_indexes
from pipeline.edit.purge.layers import layers_of
from pipeline.edit.purge.proof import Finding, check, record_proof
from pipeline.edit.purge.side_files import rewrite_side_files
from pipeline.edit.purge.tags_in_the_way import count_needed, refuse_for_tags
from pipeline.edit.purge.texts import purge_layer
from pipeline.edit.purge.work import Place, find_units, purge_units
from pipeline.encode.attempts import remove_attempts
from pipeline.environment import time_now, user_name
from pipeline.errors import LatentmillError
from pipeline.output.edits.edits import Edits, newest_edits, read_edits
from pipeline.output.layers.known_layers import layer_names, layer_store
from pipeline.output.plan import missing_units, read_plan
from pipeline.output.purges.record import Purge, newest_purge, purge_path, unfinished_purge
from pipeline.output.purges.unit_purge import settle_units
from pipeline.output.unit_metadata import newest_unit_metadata, unit_of
from pipeline.progress.formatting import number
from pipeline.storage.concurrency import MapTasks
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

Show = Callable[[str], None]
"""Shows how far the purge is."""


class PurgeUnfinished(LatentmillError):
    """Something of what was removed is still there. The same command may be run again."""


@dataclass(kw_only=True, slots=True)
class Survey:
    """Data that the newest edits remove and that is still there."""

    edits: Edits
    paths: list[str] = field(default_factory=list)
    """Metadata of the units with data of removed items."""
    parts: list[str] = field(default_factory=list)
    """Parts of indexes that jobs could not record, with rows of removed items."""
    layers: list[str] = field(default_factory=list)
    """Names of the text layers that know removed samples."""
    units_in_flight: int = 0
    """Number of units that jobs may commit with data of items that no purge knows of."""
    tags: dict[str, int] = field(default_factory=dict)
    """Tags that need some of these samples, with their number."""

    @property
    def is_needed(self) -> bool:
        """True if there is anything to purge, or to keep jobs from committing."""
        return bool(self.paths or self.parts or self.layers or self.units_in_flight)


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeResult:
    """One purge that was carried out."""

    purge: Purge
    proof: dict[str, Any]
    finding: Finding | None
    """Findings of its check; None if it had been finished before."""


def survey(store: Store, place: Place, map_tasks: MapTasks) -> Survey:
    """Find what the newest edits remove and still has data. Changes nothing."""
    edits = newest_edits(store)
    found = Survey(edits=edits)
    if edits.generation is not None and len(edits.rows):
        paths = list(newest_unit_metadata(store).values())
        found.paths = find_units(place, edits.generation, paths, map_tasks)
        newest = newest_purge(store)
        if newest is None or newest.edits < edits.generation:
            found.units_in_flight = len(missing_units(store, read_plan(store)))
        found.parts = list(dead_parts(store, edits))
        found.layers = [layer.name for layer in layers_of(store, edits) if layer.names_purged_samples]
        found.tags = count_needed(store, edits) if found.paths else {}
    return found


def purge(store: Store, place: Place, map_tasks: MapTasks, show: Show, *, despite_tags: bool) -> list[PurgeResult]:
    """Delete the data of everything that the newest edits remove; the purges that were carried out.

    A purge that was not finished comes first. ConfigError if tags need what was removed; PurgeUnfinished if something
    could not be deleted yet.
    """
    results: list[PurgeResult] = []
    while True:
        unfinished = unfinished_purge(store)
        if unfinished is not None:
            try:
                results.append(carry_out(store, place, unfinished, map_tasks, show))
            except FileNotFoundError as error:
                raise PurgeUnfinished(
                    f"{error} is gone: is {unfinished.name} also run elsewhere? Run it again"
                ) from error
        found = survey(store, place, map_tasks)
        if not found.is_needed:
            return results
        if not despite_tags:
            refuse_for_tags(store, found.tags)
        begin(store, found.edits, despite_tags=despite_tags)


def begin(store: Store, edits: Edits, *, despite_tags: bool) -> None:
    """Record a purge, unless another process has just recorded one."""
    assert edits.generation is not None
    newest = newest_purge(store)
    purge = Purge(
        number=0 if newest is None else newest.number + 1,
        edits=edits.generation,
        despite_tags=despite_tags,
        by=user_name(),
        time=time_now(),
    )
    store.put_new(purge_path(purge.number), purge.to_json())
    failpoint(Failpoint.PURGE_RECORDED)


def carry_out(store: Store, place: Place, purge: Purge, map_tasks: MapTasks, show: Show) -> PurgeResult:
    """Do what is left of a purge. Safe to call again, also by several processes at once."""
    edits = read_edits(store, purge.edits)
    changes = read_changes(store, purge) or _replace(store, place, purge, edits, map_tasks, show)
    ids = {id for unit in changes["units"].values() for id in unit["samples"]}
    rewrite_side_files(store, ids)
    show(f"deleting {number(len(changes['deleted']), 'file')}")
    delete_old(store, purge, changes)
    late = sorted(
        dead_files(store, edits, layers_of(store, edits))
    )  # what jobs have left since the changes were recorded
    for path in late:
        store.delete(path)
    _remove_traces(store)
    rewrite_side_files(store, ids)  # again, since a job that read the output before may have ended meanwhile
    show("checking every object of the output")
    settle_units(store, set(newest_unit_metadata(store)))
    finding = check(store, edits, changes)
    if finding.problems:
        raise PurgeUnfinished(f"{purge.name} is not finished; run it again:", finding.problems)
    return PurgeResult(purge=purge, proof=record_proof(store, purge, changes, finding, late), finding=finding)


def _replace(store: Store, place: Place, purge: Purge, edits: Edits, map_tasks: MapTasks, show: Show) -> Changes:
    """Write everything that takes the place of what will be deleted, and record both."""
    seen: set[str] = set()
    while paths := sorted(set(newest_unit_metadata(store).values()) - seen):  # units are committed meanwhile
        seen.update(paths)
        found = find_units(place, purge.edits, paths, map_tasks)
        for done, result in enumerate(purge_units(place, purge.number, found, map_tasks), 1):
            seen.update([result["path"]] if result["path"] else [])
            show(f"unit {done} of {len(found)} is written again without what was removed")
    show("building the index without what was removed")
    units = replaced_units(store, purge, edits)
    purge_indexes(store, purge, units, map_tasks)
    layers = layers_of(store, edits)
    for layer in layers:
        if layer.names_purged_samples:
            show(f"writing the text layer {layer.name} again without strings that are not used any more")
            purge_layer(layer.store, purge, layer.purged)
    return record_changes(store, purge, edits, layers)


def _remove_traces(store: Store) -> None:
    """Remove what jobs that no longer run may have left of samples."""
    for place in (store, *(layer_store(store, name) for name in layer_names(store))):
        committed = set(newest_unit_metadata(place))
        remove_attempts(place, committed)
        place.abort_uploads("shards", lambda path, units=committed: unit_of(path) in units)  # type: ignore[misc]
        place.sweep()
