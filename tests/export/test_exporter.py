"""Exports: every sample with its values, resumable after a crash, and a new target by the recipe of the room's page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.export_dataset import main
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.export import targets
from pipeline.export.exporter import export_dataset
from pipeline.export.target import ExportedSample, ExportTarget
from pipeline.export.targets import find_target
from pipeline.loader import LatentDataset
from pipeline.storage.store import Store
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
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parquet_holds_every_sample_with_the_loaders_values(output: str, tmp_path: Path) -> None:
    assert main([output, "--to", "parquet", "--output", str(tmp_path / "e")]) == 0
    rows = pq.read_table(tmp_path / "e" / "data").to_pylist()
    expected = loader_samples(output)
    assert {row["id"] for row in rows} == expected.keys() and len(rows) == len(BUCKETS)
    for row in rows:
        latents = np.array(row["latents"], dtype=np.float32).reshape(row["latent_shape"])
        np.testing.assert_array_equal(latents, expected[row["id"]])
        assert row["caption"] == f"number {row['key']}" and row["meta_score"] == int(row["key"]) / 2
        assert (row["fps"] is None) == (row["num_frames"] == 1)
    assert json.loads((tmp_path / "e" / "export.json").read_text())["samples"] == len(BUCKETS)


def test_a_filter_exports_only_what_passes(output: str, tmp_path: Path) -> None:
    assert main([output, "--to", "parquet", "--output", str(tmp_path), "--where", "num_frames == 1"]) == 0
    assert {row["num_frames"] for row in pq.read_table(tmp_path / "data").to_pylist()} == {1}


KILLED = """
import os, signal, sys
from pipeline.export import exporter
calls, put = iter(range(100)), exporter._put_folder
def put_then_die(store, write):
    size = put(store, write)
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return size
exporter._put_folder = put_then_die
from jobs.export_dataset import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_export_is_incomplete_and_finishes_with_the_same_files(output: str, tmp_path: Path) -> None:
    arguments = [output, "--to", "parquet", "--output"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    job = subprocess.run([sys.executable, "-c", KILLED, *arguments, str(killed)], cwd=ROOT, env=os.environ, check=False)
    assert job.returncode == -signal.SIGKILL and not (killed / "export.json").exists()
    assert main([*arguments, str(killed)]) == main([*arguments, str(whole)]) == 0
    assert files(killed) == files(whole)


def test_another_export_in_the_same_place_is_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([output, "--to", "parquet", "--output", str(tmp_path), "--where", "num_frames == 1"]) == 0
    assert main([output, "--to", "parquet", "--output", str(tmp_path)]) == 2
    assert "holds another export" in capsys.readouterr().out


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no export target 'lance'; choose one of parquet"):
        find_target("lance")


class NumpyTarget(ExportTarget):
    """A toy target: one ``.npz`` per unit and a list of them, made by the steps of the room's page."""

    name: ClassVar[str] = "npz"

    def check(self, data: LatentDataset) -> None:
        if len(data.samples.buckets) > 3:
            raise ConfigError("npz holds at most three buckets")

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> None:
        np.savez(folder / f"{unit}.npz", **{sample.id: sample.latents_Cthw for sample in samples})

    def write_indexes(self, units: list[str], folder: Path) -> None:
        (folder / "units.txt").write_text("".join(f"{unit}.npz\n" for unit in units))


def test_a_target_is_added_as_the_page_says(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.TARGETS, NumpyTarget.name, NumpyTarget)
    summary = export_dataset(LatentDataset(output), find_target("npz"), Store(str(tmp_path)), lambda line: None)
    read: dict[str, np.ndarray] = {}
    for name in (tmp_path / "units.txt").read_text().split():
        read |= dict(np.load(tmp_path / name))
    expected = loader_samples(output)
    assert summary.samples == len(expected) and read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in expected)
