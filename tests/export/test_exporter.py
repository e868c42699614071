"""Exports: every sample with its values, resumable after a crash, and a new target by the recipe of the room's page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.edit_dataset import main as edit_dataset
from jobs.export_dataset import main
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.export.exporter import UNFINISHED, export_dataset, export_locally, rows_by_unit
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets import registry
from pipeline.export.targets.registry import find_target
from pipeline.export.unit_export import ExportSettings, UnitExporter
from pipeline.loader import LatentDataset
from pipeline.storage.failpoints import VARIABLE
from pipeline.storage.store import Store
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 32)] * 7


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_latents(tmp_path_factory.mktemp("export") / "out", BUCKETS, samples_per_shard=4))


def loader_samples(output: str) -> dict[str, np.ndarray]:
    batches = LatentDataset(output).batches(1)
    return {batch["id"][0]: batch["latents"][0].numpy() for batch in batches}


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_parquet_holds_every_sample_with_the_loaders_values(output: str, tmp_path: Path) -> None:
    assert main([output, "--to", "parquet", "--local", "--output", str(tmp_path / "e")]) == 0
    rows = pq.read_table(tmp_path / "e" / "data").to_pylist()
    expected = loader_samples(output)
    assert {row["id"] for row in rows} == expected.keys() and len(rows) == len(BUCKETS)
    for row in rows:
        latents = np.array(row["latents"], dtype=np.float32).reshape(row["latent_shape"])
        np.testing.assert_array_equal(latents, expected[row["id"]])
        assert row["caption"] == f"number {row['key']}" and row["meta_score"] == int(row["key"]) / 2
        assert (row["fps"] is None) == (row["num_frames"] == 1)
    assert json.loads((tmp_path / "e" / "export.json").read_text())["samples"] == len(BUCKETS)


def test_a_dry_run_estimates_what_the_export_takes(
    output: str, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([output, "--to", "parquet", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "in 6 files, 21 rows; estimated from 21 samples of 21" in printed


def test_removed_samples_are_not_exported_but_with_an_earlier_version(output: str, tmp_path: Path) -> None:
    edited = tmp_path / "out"
    shutil.copytree(output, edited)
    assert edit_dataset([str(edited), "tag", "v1"]) == 0
    assert edit_dataset([str(edited), "remove", "--where", "num_frames == 1", "--reason", "a test"]) == 0
    for name, flags in {"newest": [], "v1": ["--version", "v1"]}.items():
        assert main([str(edited), "--to", "parquet", "--local", "--output", str(tmp_path / name), *flags]) == 0
    newest, tagged = (pq.read_table(tmp_path / name / "data").to_pylist() for name in ("newest", "v1"))
    assert len(newest) == len(BUCKETS) * 2 // 3 and all(row["num_frames"] == 17 for row in newest)
    assert len(tagged) == len(BUCKETS)


def test_a_filter_exports_only_what_passes(output: str, tmp_path: Path) -> None:
    assert main([output, "--to", "parquet", "--local", "--output", str(tmp_path), "--where", "num_frames == 1"]) == 0
    assert {row["num_frames"] for row in pq.read_table(tmp_path / "data").to_pylist()} == {1}


@pytest.mark.parametrize("step", ["file-linked:14", "file-written:17", "file-linked:22"])
def test_a_killed_export_is_incomplete_and_finishes_with_the_same_files(
    output: str, whole: dict[str, bytes], step: str, tmp_path: Path
) -> None:
    arguments = [output, "--to", "parquet", "--local", "--output", str(tmp_path)]
    command = [sys.executable, "jobs/export_dataset.py", *arguments]
    job = subprocess.run(command, cwd=ROOT, env=os.environ | {VARIABLE: step}, check=False, capture_output=True)
    assert job.returncode == -signal.SIGKILL
    assert not (tmp_path / "export.json").exists() and (tmp_path / UNFINISHED).exists()
    assert main(arguments) == 0
    assert files(tmp_path) == whole


@pytest.fixture(scope="module")
def whole(output: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([output, "--to", "parquet", "--local", "--output", str(folder)]) == 0
    return files(folder)


def test_tasks_on_ray_write_the_same_files(output: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert main([output, "--to", "parquet", "--output", str(tmp_path)]) == 0
    assert files(tmp_path) == whole


def settings_of(output: str, folder: Path, target: str = "parquet") -> ExportSettings:
    data = LatentDataset(output)
    return ExportSettings(
        dataset=output,
        samples=data.samples.digest,
        target=target,
        options=ExportOptions(),
        output=str(folder),
        version=data.version.name,
    )


def test_tasks_that_begin_after_the_output_has_grown_export_the_version_before(tmp_path: Path) -> None:
    output = tmp_path / "out"
    add_unit(output, [Captions("one"), Captions("two")])
    finish(output)
    settings = settings_of(str(output), tmp_path / "export")
    units = rows_by_unit(LatentDataset(str(output)))
    add_unit(output, [Captions("three")])
    finish(output)
    assert [outcome.samples for outcome in export_locally(settings, units)] == [2]


def test_an_index_that_appears_during_an_export_stops_it(tmp_path: Path) -> None:
    """The index may have the same samples in another order than the metadata of the units."""
    output = tmp_path / "out"
    add_unit(output, [Captions("one"), Captions("two")])
    settings = settings_of(str(output), tmp_path / "export")
    assert UnitExporter.of(settings).data.version.name is None
    finish(output)
    with pytest.raises(IntegrityError, match="has grown since this export was begun"):
        UnitExporter.of(settings)


def test_another_export_in_the_same_place_is_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([output, "--to", "parquet", "--local", "--output", str(tmp_path), "--where", "num_frames == 1"]) == 0
    assert main([output, "--to", "parquet", "--local", "--output", str(tmp_path)]) == 2
    assert "holds another export" in capsys.readouterr().out


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no export target 'lance'; choose one of automodel, "):
        find_target("lance")


class NumpyTarget(ExportTarget):
    """A toy target: one ``.npz`` per unit and a list of them, made by the steps of the room's page."""

    name: ClassVar[str] = "npz"
    reader: ClassVar[str] = "NumPy"

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        if len(data.samples.buckets) > 3:
            raise ConfigError("npz holds at most three buckets")

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        np.savez(folder / f"{unit}.npz", **{sample.id: sample.normalized_mean() for sample in samples})
        return b""

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        (folder / "units.txt").write_text("".join(f"{unit}.npz\n" for unit, _ in parts))


def test_a_target_is_added_as_the_page_says(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TARGETS, NumpyTarget.name, NumpyTarget)
    data = LatentDataset(output)
    settings = settings_of(output, tmp_path, "npz")
    store = Store(str(tmp_path))
    summary = export_dataset(data, find_target("npz"), settings, store, export_locally, lambda summary, units: None)
    read: dict[str, np.ndarray] = {}
    for name in (tmp_path / "units.txt").read_text().split():
        read |= dict(np.load(tmp_path / name))
    expected = loader_samples(output)
    assert summary.samples == len(expected) and read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in expected)
