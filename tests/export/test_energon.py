"""Tars for Energon: members, the indexes of their places, and ``.nv-meta``, by the format that Energon's own tool writes.

``python -m tests.bench.export_energon`` reads an export with Energon and Megatron-Bridge themselves.
"""

from __future__ import annotations

import io
import itertools
import json
import sqlite3
import struct
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from jobs.export_dataset import main
from pipeline.export.targets.pickles import unpickle_tensor
from tests.support.export_set import Expected, write_mixed_set


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return Expected(write_mixed_set(tmp_path_factory.mktemp("energon") / "out"))


@pytest.fixture(scope="module")
def export(expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("energon") / "e"
    assert main([expected.data.url, *"--to energon --text t5 --local --output".split(), str(folder)]) == 0
    return folder


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_sample_is_a_tensor_a_pickle_and_facts(expected: Expected, export: Path) -> None:
    members = {name: content for path in export.glob("*.tar") for name, content in members_of(path).items()}
    assert len(members) == 3 * len(expected.ids)
    for id in expected.ids:
        latents = torch.load(io.BytesIO(members[f"{id}.pth"]), weights_only=True)
        assert torch.equal(latents, expected.latents[id].to(torch.float16)) and latents.dtype == torch.float16
        assert torch.equal(unpickle_tensor(members[f"{id}.pickle"]), expected.text[id].tokens())
        facts = json.loads(members[f"{id}.json"])
        assert facts["caption"] == expected.captions[id]
        is_image = latents.shape[1] == 1
        assert facts["processing_mode"] == ("frames" if is_image else "video")
        assert facts["fps"] == (None if is_image else pytest.approx(expected.fps[id]))


def test_the_indexes_lead_to_every_sample_and_member(export: Path) -> None:
    counts = json.loads((export / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    database = sqlite3.connect(export / ".nv-meta" / "index.sqlite")
    for tar_id, (name, count) in enumerate(counts.items()):
        content, members = (export / name).read_bytes(), members_of(export / name)
        offsets = struct.unpack(f"<{count + 1}Q", (export / f"{name}.idx").read_bytes())
        samples = database.execute(
            "SELECT sample_key, byte_offset, byte_size FROM samples WHERE tar_file_id = ? ORDER BY sample_index",
            [tar_id],
        ).fetchall()
        assert [(start, size) for _, start, size in samples] == [
            (start, end - start) for start, end in itertools.pairwise(offsets)
        ]
        parts = database.execute("SELECT * FROM sample_parts WHERE tar_file_id = ?", [tar_id]).fetchall()
        assert len(parts) == len(members) == 3 * count
        for _, n, suffix, start, size in parts:
            assert content[start : start + size] == members[f"{samples[n][0]}.{suffix}"]


def test_all_samples_are_in_the_split_for_training(export: Path) -> None:
    meta = export / ".nv-meta"
    tars = sorted(path.name for path in export.glob("*.tar"))
    assert yaml.safe_load((meta / "split.yaml").read_text())["split_parts"] == {"train": tars, "val": [], "test": []}
    assert yaml.safe_load((meta / "dataset.yaml").read_text()) == {
        "__module__": "megatron.energon",
        "__class__": "CrudeWebdataset",
    }


def test_a_second_export_has_the_same_bytes(expected: Expected, export: Path, tmp_path: Path) -> None:
    assert main([expected.data.url, *"--to energon --text t5 --local --output".split(), str(tmp_path)]) == 0
    for path in (path for path in export.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(export)).read_bytes(), path


def test_latents_that_cannot_be_cut_into_patches_are_named(
    expected: Expected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([expected.data.url, *"--to energon --text t5 --local --output".split(), str(tmp_path)]) == 0
    assert "note: 5 samples of an odd latent height or width" in capsys.readouterr().out
