"""Chunks of MosaicML Streaming and litdata, read by the libraries themselves where they are installed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.export_dataset import main
from tests.support.export_set import Expected, write_mixed_set


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return Expected(write_mixed_set(tmp_path_factory.mktemp("chunks") / "out"))


def export(expected: Expected, target: str, folder: Path) -> Path:
    assert main([expected.data.url, "--to", target, "--text", "t5", "--local", "--output", str(folder)]) == 0
    return folder


def check_samples(expected: Expected, samples: Iterable[Mapping[str, Any]]) -> None:
    """Compare samples of a library with our loader's."""
    by_id = {sample["id"]: sample for sample in samples}
    assert by_id.keys() == set(expected.ids)
    sizes = {row["id"]: row for row in expected.data.columns.to_pylist()}
    for id, sample in by_id.items():
        latents, text = torch.as_tensor(sample["latents"]), torch.as_tensor(sample["text_t5"])
        assert latents.dtype == text.dtype == torch.float32
        assert torch.equal(latents, expected.latents[id])
        assert torch.equal(text, expected.text[id].tokens().float())
        assert sample["caption"] == expected.captions[id]
        assert [sample[name] for name in ("key", "height", "width", "num_frames")] == [
            sizes[id][name] for name in ("key", "height", "width", "num_frames")
        ]
        is_image = sample["num_frames"] == 1
        assert math.isnan(sample["fps"]) if is_image else sample["fps"] == pytest.approx(expected.fps[id])
        assert json.loads(sample["meta"])["meta_score"] == sizes[id]["meta_score"]


@pytest.mark.filterwarnings("ignore")
def test_streaming_reads_the_loaders_values(expected: Expected, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    folder = export(expected, "mds", tmp_path / "mds")
    data = streaming.StreamingDataset(local=str(folder), batch_size=1)
    check_samples(expected, [data[n] for n in range(len(data))])


@pytest.mark.filterwarnings("ignore")
def test_litdata_reads_the_loaders_values(expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    litdata = pytest.importorskip("litdata")
    monkeypatch.setenv("DATA_OPTIMIZER_CACHE_FOLDER", str(tmp_path / "cache"))
    folder = export(expected, "litdata", tmp_path / "litdata")
    check_samples(expected, list(litdata.StreamingDataset(str(folder))))


@pytest.mark.parametrize(("target", "package"), [("mds", "streaming"), ("litdata", "litdata")])
def test_a_second_export_has_the_same_bytes(expected: Expected, target: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    first, second = export(expected, target, tmp_path / "a"), export(expected, target, tmp_path / "b")
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


@pytest.mark.parametrize(
    ("target", "module", "package"),
    [("mds", "streaming", "mosaicml-streaming"), ("litdata", "litdata.streaming.writer", "litdata")],
)
def test_a_missing_library_is_named(
    expected: Expected,
    target: str,
    module: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main([expected.data.url, "--to", target, "--local", "--output", str(tmp_path)]) == 2
    assert f"--to {target} needs" in (printed := capsys.readouterr().out) and f"pip install {package}" in printed
    assert not list(tmp_path.iterdir())
