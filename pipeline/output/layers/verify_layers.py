"""Checks that the layers of an output are still what was committed: shards, index, strings and maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.output.index import newest_index
from pipeline.output.layers.known_layers import FOLDER, layer_names, layer_store
from pipeline.output.layers.text_layer import (
    NULL_ROW_ID,
    PURGED_STRINGS,
    TextLayer,
    TextMap,
    read_text_layer,
    strings_digest,
    strings_path,
    text_id,
)
from pipeline.output.layers.text_rows import ID, text_rows
from pipeline.output.plan import generation_facts, read_plan
from pipeline.output.verify import Verdict, check_committed
from pipeline.sources.units import Plan
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

Ids = npt.NDArray[np.bytes_]


def verify_layers(
    output: Store, verdict: Verdict, say: Callable[[str], None], map_tasks: MapTasks = map_in_process
) -> None:
    """Read everything that the layers of an output have committed, and add what was found to ``verdict``."""
    for name in layer_names(output):
        found = verify_text_layer(layer_store(output, name), partial(_say_of_layer, say, name), map_tasks)
        verdict.units += found.units
        verdict.shards += found.shards
        verdict.strings += found.samples
        verdict.size_bytes += found.size_bytes
        verdict.problems += [(f"{FOLDER}/{name}/{path}", problem) for path, problem in found.problems]


def _say_of_layer(say: Callable[[str], None], name: str, line: str) -> None:
    say(f"layer {name}: {line}")


def verify_text_layer(store: Store, say: Callable[[str], None], map_tasks: MapTasks = map_in_process) -> Verdict:
    """Read everything that a text layer has committed and compare it with what was recorded. ``store``: the layer's."""
    verdict = Verdict()
    layer, plan = read_text_layer(store), read_plan(store)
    check_committed(store, plan, text_rows(layer.card), verdict, say, map_tasks)
    _check_recipe(store, layer, verdict)
    planned = _check_strings(store, plan, verdict)
    for generation in range(len(plan.columns)):
        _check_map(store, TextMap.from_facts(generation_facts(store, generation)), planned, verdict)
    return verdict


def _check_recipe(store: Store, layer: TextLayer, verdict: Verdict) -> None:
    """Check that the rows were made with the recipe that is recorded."""
    index = newest_index(store)
    for path in index.samples if index is not None else ():
        try:
            recipes = set(read_parquet(store.get(path), ["recipe"])["recipe"].unique().to_pylist())
        except (FileNotFoundError, pa.ArrowException, OSError):  # reported already
            continue
        if recipes != {layer.recipe.fingerprint}:
            found = ", ".join(map(str, recipes))
            verdict.problems.append((path, f"its rows have the recipe {found}, not {layer.recipe.fingerprint}"))


def _check_strings(store: Store, plan: Plan, verdict: Verdict) -> Ids:
    """Check that strings are those that were planned, and each of them once; the ids of all units, sorted."""
    ids = [np.zeros(0, "S20")]
    for unit in plan.units:
        path = strings_path(unit.name)
        strings = _read(store, path, verdict)
        if strings is None:
            continue
        recorded, texts = strings[ID].to_pylist(), strings["texts"].to_pylist()
        wrong = [
            id for id, rendered in zip(recorded, texts, strict=True) if id != NULL_ROW_ID and text_id(rendered) != id
        ]
        planned_here = len(unit.ordinals) - int((strings.schema.metadata or {}).get(PURGED_STRINGS.encode(), 0))
        if wrong or len(recorded) != planned_here:
            expected = f"{planned_here} strings and found {len(recorded)}"
            verdict.problems.append((path, f"expected {expected}; {len(wrong)} of them have the id of another string"))
        elif strings_digest(store.get(path)) != unit.etag:
            verdict.problems.append((path, "its bytes are not those that were planned"))
        ids.append(np.array(recorded, "S20"))
    planned = np.sort(np.concatenate(ids))
    for id in np.unique(planned[1:][planned[1:] == planned[:-1]]).tolist():
        verdict.problems.append(("strings/", f"the string {id.decode()} is planned more than once"))
    return planned


def _check_map(store: Store, text_map: TextMap, planned: Ids, verdict: Verdict) -> None:
    """Check that a map has the bytes that its name stands for, and that it names planned strings only."""
    digest = hashlib.sha256()
    for path in [*text_map.paths, text_map.text_ids]:
        try:
            content = store.get(path)
        except FileNotFoundError:
            verdict.problems.append((path, "missing"))
            return
        digest.update(hashlib.sha256(content).digest())
    if text_map.folder != f"maps/{digest.hexdigest()[:16]}":
        verdict.problems.append((text_map.folder, f"its content has the hash {digest.hexdigest()[:16]}"))
    for rows in _maps(store, text_map, verdict):
        wanted = np.unique(np.array(rows["text_id"].to_pylist(), "S20"))
        if missing := len(wanted) - int(np.isin(wanted, planned).sum()):
            verdict.problems.append((text_map.folder, f"it names {missing} strings that are not planned"))


def _maps(store: Store, text_map: TextMap, verdict: Verdict) -> Iterator[pa.Table]:
    for path in text_map.paths:
        rows = _read(store, path, verdict)
        if rows is not None:
            yield rows


def _read(store: Store, path: str, verdict: Verdict) -> pa.Table | None:
    """Read a table; None, with a problem, if it cannot be read."""
    try:
        return read_parquet(store.get(path))
    except FileNotFoundError:
        problem = "missing; if the job did not finish, run it again"
    except IntegrityError as error:
        problem = str(error)
    except (pa.ArrowException, OSError) as error:
        problem = f"cannot be read: {str(error).splitlines()[0]}"
    verdict.problems.append((path, problem))
    return None
