"""What a finished output must be, read with plain tarfile, Parquet and JSON rather than with our own readers."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow.parquet as pq

PROMISED = ("shards", "metadata", "index", "plan", "strings", "maps", "dataset.json")
"""What is the same bytes after any disturbance."""

ORDER = ("source", "ordinal", "window", "group")

Read = Callable[[str], bytes]


def tree(output: Path) -> dict[str, str]:
    """sha256 of every promised file."""
    files = [
        p for name in PROMISED for p in ([output / name] if (output / name).is_file() else (output / name).rglob("*"))
    ]
    return {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


def assert_never_torn(output: Path) -> list[dict[str, Any]]:
    """What readers may see at any moment: each unit's metadata and the tar it names are whole. Rows of all units."""
    rows: list[dict[str, Any]] = []
    for path in sorted((output / "metadata").glob("*.parquet")):
        table = pq.read_table(path)
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert path.name == f"{facts['unit']}.0.parquet"
        if "shard" in facts:
            _check_shard(output, facts, table.to_pylist())
        rows += [row | {"unit": facts["unit"]} for row in table.to_pylist()]
    for path in (output / "index").glob("*.json"):
        index = json.loads(path.read_text())
        for part in [*index["samples"], *index["rejects"], *index["skips"]]:
            pq.read_table(output / part)
        assert all((output / shard).exists() for shard in (output / index["shards"]).read_text().split())
    return rows


def assert_sound(output: Path, inputs: set[tuple[str, int, int]] | None = None) -> list[dict[str, Any]]:
    """Every promise that a finished output makes about itself; its rows.

    ``inputs``: every window, as (source, ordinal, window), that the output must account for, where the test knows them.
    """
    units = [row for path in sorted((output / "plan").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert {path.name for path in (output / "metadata").iterdir()} == {f"{unit['name']}.0.parquet" for unit in units}
    by_unit: dict[str, list[dict[str, Any]]] = {unit["name"]: [] for unit in units}
    for row in assert_never_torn(output):
        by_unit[row.pop("unit")].append(row)
    shards = {row["shard"] for found in by_unit.values() for row in found if row["shard"]}
    rows: list[dict[str, Any]] = []
    for unit in units:
        again = {row["id"] for row in by_unit[unit["name"]]} if unit["retries"] else set()
        replaced = [row for row in rows if row["id"] in again]
        assert all(row["reject_reason"] for row in replaced), "only rejects are tried again"
        rows = [row for row in rows if row["id"] not in again] + by_unit[unit["name"]]
    windows = Counter((row["source"], row["ordinal"], row["window"], row["group"]) for row in rows)
    assert windows and max(windows.values()) == 1, "a window is accounted for twice in a group"
    assert inputs is None or {window[:3] for window in windows} == inputs, "a window is lost or made up"
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        outcomes = [row["shard"] is not None, row["skip_reason"] is not None, row["reject_reason"] is not None]
        assert sum(outcomes) == 1, row
        assert (row["reject_reason"] is None) == (row["reject_stage"] is None) == (row["reject_message"] is None)
    on_disk = (
        {f"shards/{path.name}" for path in (output / "shards").iterdir()} if (output / "shards").exists() else set()
    )
    assert on_disk == shards, "a tar that no unit metadata names, or one that is missing"
    _check_index(output, rows, shards)
    assert not (output / ".partial").exists(), "files of writers that no longer run, or their empty folder"
    return rows


def _check_shard(output: Path, facts: dict[str, str], rows: list[dict[str, Any]]) -> None:
    data = (output / facts["shard"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == facts["sha256"] and len(data) == int(facts["size_bytes"])
    assert facts["shard"].endswith(f"-{facts['sha256'][:8]}.tar")
    samples = sorted((row for row in rows if row["shard"]), key=lambda row: row["offset"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    others = [name.removesuffix("tensor_offset") for name in samples[0] if name.endswith("_tensor_offset")]
    step = 2 + len(others)
    assert len(members) == step * len(samples) == step * int(facts["num_samples"])
    sums = np.zeros((2, samples[0]["latent_c"]))
    for i, row in enumerate(samples):
        latent, *further, text = members[step * i : step * (i + 1)]
        assert latent.name.startswith(f"{row['id']}.latent.") and text.name == f"{row['id']}.json"
        for member, prefix in zip([latent, *further], ["", *others], strict=True):
            assert (member.offset_data, member.size) == (row[f"{prefix}offset"], row[f"{prefix}nbytes"])
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            tensor = data[row[f"{prefix}tensor_offset"] :][: row[f"{prefix}tensor_nbytes"]]
            assert google_crc32c.value(tensor) == row[f"{prefix}crc32c"]
        tensor = data[row["tensor_offset"] : row["tensor_offset"] + row["tensor_nbytes"]]
        values = json.loads(data[text.offset_data : text.offset_data + text.size])
        assert values["key"] == row["key"] and values.get("caption") == row["caption"]
        if row["dtype"] in ("float16", "int8"):
            array = np.load(io.BytesIO(data[row["offset"] : row["offset"] + row["nbytes"]]), allow_pickle=False)
            assert array.tobytes() == tensor and np.isfinite(array).all()
            channels = row["latent_c"] * (2 if row["store"] == "moments" else 1)
            assert array.shape == (channels, row["latent_t"], row["latent_h"], row["latent_w"])
            if row["dtype"] == "int8":
                scale_file = data[row["scale_offset"] :][: row["scale_nbytes"]]
                scales = np.load(io.BytesIO(scale_file), allow_pickle=False)
                assert scales.shape == (channels, row["latent_t"], 1, 1) and scales.dtype == np.float32
                array = array * scales
            mean = array[: row["latent_c"]].astype(np.float64)
            sums += mean.sum(axis=(1, 2, 3)), (mean**2).sum(axis=(1, 2, 3))
    if samples[0]["dtype"] in ("float16", "int8"):
        assert np.allclose(sums, [json.loads(facts["latent_sum"]), json.loads(facts["latent_sum_of_squares"])])


def _check_index(output: Path, rows: list[dict[str, Any]], shards: set[str]) -> None:
    newest = max((output / "index").glob("*.json"))
    index = json.loads(newest.read_text())
    assert newest.stem == f"{index['generation']:04d}"
    assert index["plan_generations"] == len(list((output / "plan").glob("*.parquet")))
    assert (output / index["shards"]).read_text().split() == sorted(shards)
    found: list[dict[str, Any]] = []
    for name in ("samples", "rejects", "skips"):
        part = [row for path in index[name] for row in pq.read_table(output / path).to_pylist()]
        assert len(part) == index[f"num_{name}"]
        found += part
    assert len(found) == len(rows), "the index has a row twice, or lacks one"
    for name in ("samples", "rejects", "skips"):
        tables = [pq.read_table(output / path).to_pylist() for path in index[name]]
        for part in tables:
            order = [tuple("" if row[column] is None else row[column] for column in ORDER) for row in part]
            assert order == sorted(order), f"{name} of a part are not in order"
        if name == "samples":
            series = [{(row["group"] or "", row["bucket"]) for row in part} for part in tables]
            assert all(len(one) == 1 for one in series) and series == sorted(series, key=min)
    assert {row["id"]: row for row in found} == {row["id"]: row | dict.fromkeys(found[0], None) | row for row in rows}
