"""Imports of other trainers' latents: what an export wrote comes back, and what trainers write is taken or rejected."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.encode_dataset import main as encode
from jobs.encode_text import main as encode_text
from jobs.export_dataset import main as export
from jobs.import_dataset import main
from jobs.report import main as report
from jobs.verify_dataset import main as verify
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset, MixedDataset
from pipeline.storage.failpoints import VARIABLE
from stvae import read_card
from tests.support.captioned_set import VIDEO_BUCKET, Captions, add_unit, finish
from tests.support.golden import TINY
from tests.support.oracle import tree
from tests.support.paths import ROOT
from tests.support.tiny_vaes import save

CAPTIONS = ["a dog", "ein Hund läuft über die Wiese 🐕, sagt man", 'two\nlines, with "quotes"']
TOLERANCE = {"ltx": 2**-8, "automodel": 2**-10, "fastvideo": 0.0}
"""Relative error of the format's type: bfloat16, float16 and float32."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports") / "out"
    add_unit(folder, [Captions(caption, bucket=VIDEO_BUCKET) for caption in CAPTIONS])
    add_unit(folder, [Captions("a still"), Captions("a dog", bucket=VIDEO_BUCKET)])
    finish(folder)
    flags = ["--encoder", "demo", "--layer", "t5", "--captions", "caption", "--local", "--cpus", "1"]
    assert encode_text([str(folder), *flags]) == 0
    return folder


def import_from(source: Path, source_format: str, folder: Path, *flags: str, vae: Path = TINY) -> int:
    return main([str(source), "--from", source_format, "--vae", str(vae), "--output", str(folder), "--local", *flags])


def rows_of(folder: Path, outcome: str = "samples") -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"index/*/{outcome}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def rejects_of(folder: Path) -> dict[str, str]:
    """The reason of every reject by its key."""
    return {row["key"]: f"{row['reject_stage']}/{row['reject_reason']}" for row in rows_of(folder, "rejects")}


def latents_of(data: LatentDataset) -> list[np.ndarray]:
    return [np.asarray(array, dtype=np.float32) for array in data.read(np.arange(len(data)))]


@pytest.mark.parametrize("name", ["ltx", "automodel", "fastvideo"])
def test_an_export_comes_back_within_the_precision_of_its_format(name: str, output: Path, tmp_path: Path) -> None:
    one_size = ["--where", "num_frames > 1"] if name == "fastvideo" else []
    flags = ["--to", name, "--output", str(tmp_path / "e"), "--text", "t5", "--local", *one_size]
    assert export([str(output), *flags]) == 0
    assert import_from(tmp_path / "e", name, tmp_path / "in") == 0
    assert verify([str(tmp_path / "in")]) == 0

    before, after = LatentDataset(output, where=one_size[1] if one_size else None), LatentDataset(tmp_path / "in")
    assert len(before) == len(after)
    id_of = {
        "ltx": lambda row: row["key"].rpartition("/")[2],
        "automodel": lambda row: row["key"].rpartition("-")[2],
        "fastvideo": lambda row: row["meta_id"],
    }[name]
    old = dict(zip(before.columns["id"].to_pylist(), latents_of(before), strict=True))
    old_rows = {row["id"]: row for row in before.columns.to_pylist()}
    shift, scale = (np.array(values)[:, None, None, None] for values in (before.card.shift, before.card.scale))
    for row, raw in zip(after.columns.to_pylist(), latents_of(after), strict=True):
        was = old_rows[id_of(row)]
        normalized, expected = (raw - shift) * scale, (old[was["id"]] - shift) * scale
        assert np.allclose(normalized, expected, rtol=TOLERANCE[name], atol=TOLERANCE[name] * np.abs(expected).max())
        same = ["bucket", "num_frames", "height", "width", "latent_t", "latent_h", "latent_w", "fps", "pad_frames"]
        same += {
            "ltx": [],
            "automodel": ["caption", "uri", "src_width", "src_height"],
            "fastvideo": ["caption", "key"],
        }[name]
        assert {column: row[column] for column in same} == {column: was[column] for column in same}
        assert all(row[column] is None for column in ("start_s", "src_fps", "decoder", "crop_top", "encode_path"))
    if name == "fastvideo":
        assert all(
            np.array_equal(raw, old[row["meta_id"]])
            for row, raw in zip(after.columns.to_pylist(), latents_of(after), strict=True)
        )


def write_ltx(folder: Path, name: str, **values: Any) -> None:
    path = folder / ".precomputed" / "latents" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(values, path)


def latent_of(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("vaes")

    def vae(name: str) -> Path:
        return folder / name if (folder / name).exists() else save(name, folder / name)

    return vae


def test_the_ltx_trainers_files_are_taken_with_and_without_optional_values(
    tmp_path: Path, vaes: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    vae = vaes("AutoencoderKLLTX2Video")
    card = read_card(str(vae))
    channels, stride, source = card.latent_channels, card.geometry.spatial_stride, tmp_path / "clips"
    whole = latent_of(channels, 3, 2, 4)
    sizes = {"num_frames": 3, "height": 2, "width": 4}
    write_ltx(source, "a/clip 1", latents=whole, fps=25.0, **sizes)
    write_ltx(source, "a/b/bare", latents=whole)
    write_ltx(
        source, "latent_7", latents=whole.permute(1, 2, 3, 0).reshape(24, channels), fps=torch.tensor(24.0), **sizes
    )
    write_ltx(source, "image", latents=whole[:, :1], fps=1.0)
    (source / ".precomputed" / "audio_latents").mkdir()
    torch.save({}, source / ".precomputed" / "audio_latents" / "a.pt")

    assert import_from(source, "ltx", tmp_path / "in", vae=vae) == 0
    rows = {row["key"]: row for row in rows_of(tmp_path / "in")}
    assert rows.keys() == {"a/clip 1", "a/b/bare", "latent_7", "image"}
    frames = 1 + 2 * card.geometry.temporal_stride
    for key, fps, num_frames in (
        ("a/clip 1", 25.0, frames),
        ("a/b/bare", None, frames),
        ("latent_7", 24.0, frames),
        ("image", None, 1),
    ):
        row = rows[key]
        assert (row["fps"], row["num_frames"], row["height"], row["width"]) == (fps, num_frames, 2 * stride, 4 * stride)
        assert row["caption"] is None and row["store"] == ("sample" if key == "latent_7" else "mean")
    assert rows["a/clip 1"]["uri"].endswith("/clips/.precomputed/latents/a/clip 1.pt")
    data = LatentDataset(tmp_path / "in", where=f"num_frames == {frames}")
    for batch in data.batches(1, rank=0, world_size=1):
        assert torch.allclose(batch["latents"][0], whole.float(), atol=1e-2, rtol=1e-2)
    printed = capsys.readouterr().out
    assert (
        "not imported: audio_latents" in printed and "fps of 1 sample" in printed and "caption of 4 samples" in printed
    )
    assert "mean 3, sample 1" in printed and "nothing verifies" in printed

    facts = json.loads((tmp_path / "in" / "dataset.json").read_text())
    assert facts["vae"]["declared"] is True and facts["vae"]["sha256"] == facts["recipe"]["vae"] == card.sha256
    assert (facts["recipe"]["origin"], facts["recipe"]["store"]) == ("import", "mean")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_captions_come_from_the_table_that_the_trainer_read(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/one", "two.take", "three"):
        write_ltx(tmp_path / "s", name, latents=latent_of(4, 5, 2, 3))
    rows = [
        {"media_path": f"{tmp_path}/a/one.mp4", "caption": "ein Hund, sagt man"},
        {"media_path": "./two.take.mp4", "caption": "two"},
    ]
    lines = [json.dumps(row) for row in rows]
    table = tmp_path / f"dataset.{suffix}"
    table.write_text(
        {
            "json": json.dumps(rows),
            "jsonl": "\n".join(lines),
            "csv": 'caption,media_path\n"ein Hund, sagt man",a/one.mp4\ntwo,./two.take.mp4\n',
        }[suffix]
    )
    assert import_from(tmp_path / "s", "ltx", tmp_path / "in", "--captions", str(table)) == 0
    found = {row["key"]: row["caption"] for row in rows_of(tmp_path / "in")}
    assert found == {"a/one": "ein Hund, sagt man", "two.take": "two", "three": None}
    table.write_text("[]")
    assert import_from(tmp_path / "s", "ltx", tmp_path / "other", "--captions", str(table)) == 2
    assert "--captions" in capsys.readouterr().out


class Bomb:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_hostile_and_damaged_files_become_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, good = tmp_path / "cache", latent_of(1, 4, 5, 2, 3, dtype=torch.float16)
    (source / "24x16").mkdir(parents=True)

    def write(name: str, values: Any) -> Path:
        torch.save(values, source / "24x16" / f"{name}.meta")
        return source / "24x16" / f"{name}.meta"

    write("good", {"video_latents": good})
    write(
        "odd", {"video_latents": good, "prompt": "\udc80 text", "fps": float("nan"), "num_frames": -3, "video_path": 7}
    )
    write("code", {"video_latents": good, "x": Bomb(tmp_path / "bang")})
    (source / "24x16" / "raw.meta").write_bytes(pickle.dumps({"video_latents": Bomb(tmp_path / "bang")}))
    cut = write("cut", {"video_latents": good})
    cut.write_bytes(cut.read_bytes()[:-300])
    (source / "24x16" / "empty.meta").touch()
    (source / "24x16" / "text.meta").write_text("hello")
    write("nan", {"video_latents": good * float("nan")})
    write("wide", {"video_latents": latent_of(1, 16, 5, 2, 3)})
    write("flat", {"video_latents": good[0, 0, 0]})
    write("other", {"video_latents": good, "bucket_resolution": [480, 832]})
    write("named", {"video_latent": good})
    write("whole", {"video_latents": torch.ones(1, 4, 5, 2, 3, dtype=torch.int64)})
    write("bare", good)
    write("spread", {"video_latents": torch.zeros(1, 4, 1, 1, 1).expand(1, 4, 5, 20, 30)})

    assert import_from(source, "automodel", tmp_path / "in", "--max-rejects", "1") == 0
    assert not (tmp_path / "bang").exists()
    rows = {row["key"]: row for row in rows_of(tmp_path / "in")}
    assert rows.keys() == {"24x16/good", "24x16/odd"}
    assert rows["24x16/odd"]["caption"] == "? text" and rows["24x16/odd"]["fps"] is None
    assert {key.rpartition("/")[2]: reason for key, reason in rejects_of(tmp_path / "in").items()} == {
        "code": "import/unsafe_file",
        "raw": "import/unsafe_file",
        "cut": "import/damaged_file",
        "empty": "import/damaged_file",
        "text": "import/damaged_file",
        "nan": "import/nonfinite",
        "wide": "import/wrong_channels",
        "flat": "import/wrong_size",
        "other": "import/wrong_size",
        "named": "import/no_latent",
        "whole": "import/no_latent",
        "bare": "import/no_latent",
        "spread": "import/damaged_file",
    }
    printed = capsys.readouterr().out
    assert "Traceback" not in printed and "import/unsafe_file: its pickle may run code" in printed
    assert verify([str(tmp_path / "in")]) == 0


def fastvideo_row(latent: torch.Tensor, **values: Any) -> dict[str, Any]:
    floats = latent.float().numpy()
    tensor = {
        "vae_latent_bytes": floats.tobytes(),
        "vae_latent_shape": list(floats.shape),
        "vae_latent_dtype": "float32",
    }
    return tensor | values


def write_rows(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def test_rows_of_fastvideo_are_raw_or_normalized_samples_by_the_model(
    tmp_path: Path, vaes: Callable[[str], Path]
) -> None:
    for name, store, form in (("AutoencoderKLWan", "mean", "raw"), ("AutoencoderKLMiniMaxH3", "sample", "normalized")):
        vae, source = vaes(name), tmp_path / name
        card = read_card(str(vae))
        latent = latent_of(card.latent_channels, 2, 4, 6, dtype=torch.float32)
        # FastVideo writes the height as the width and the other way around, and counts latent frames
        size = {"width": 4 * card.geometry.spatial_stride, "height": 6 * card.geometry.spatial_stride, "num_frames": 2}
        row = fastvideo_row(latent, id="x", file_name="x.mp4", caption="", fps=16.0, duration_sec=9.0, **size)
        write_rows(
            source / "worker_0" / "data.parquet", [row, row | {"vae_latent_bytes": row["vae_latent_bytes"][:-4]}]
        )
        assert import_from(source, "fastvideo", tmp_path / f"in-{name}", "--max-rejects", "1", vae=vae) == 0
        (found,) = rows_of(tmp_path / f"in-{name}")
        assert (found["key"], found["meta_id"], found["caption"], found["fps"]) == ("x.mp4", "x", None, 16.0)
        assert (found["height"], found["width"]) == (4 * card.geometry.spatial_stride, 6 * card.geometry.spatial_stride)
        assert [*rejects_of(tmp_path / f"in-{name}").values()] == ["import/wrong_size"]
        recipe = LatentDataset(tmp_path / f"in-{name}").recipe
        assert (recipe.store, recipe.imported_latents, recipe.dtype) == (store, form, "float32")
        (batch,) = LatentDataset(tmp_path / f"in-{name}").batches(1, rank=0, world_size=1)
        shift, scale = (torch.tensor(values)[:, None, None, None] for values in (card.shift, card.scale))
        expected = latent if form == "normalized" else (latent - shift) * scale
        assert torch.allclose(batch["latents"][0], expected, atol=1e-5)


def test_a_form_that_cannot_be_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "s" / "a.parquet", [fastvideo_row(latent_of(4, 5, 2, 3))])
    assert import_from(tmp_path / "s", "fastvideo", tmp_path / "in") == 2
    assert "--latents raw or --latents normalized" in capsys.readouterr().out
    assert not (tmp_path / "in").exists()
    assert import_from(tmp_path / "s", "fastvideo", tmp_path / "in", "--latents", "raw") == 0


def test_damaged_parquet_files_cost_their_rows_only(tmp_path: Path) -> None:
    rows = [fastvideo_row(latent_of(4, 5, 2, 3), id=str(n)) for n in range(6)]
    for name in ("a", "b", "c"):
        write_rows(tmp_path / "s" / f"{name}.parquet", rows, row_group_size=2)
    whole = (tmp_path / "s" / "b.parquet").read_bytes()
    (tmp_path / "s" / "b.parquet").write_bytes(whole[:10] + b"\xff" * 300 + whole[310:])
    (tmp_path / "s" / "c.parquet").write_bytes(whole[:-100])
    write_rows(tmp_path / "s" / "d.parquet", [{"text": "no latents"}])
    flags = ["--latents", "raw", "--max-rejects", "1", "--unit-clips", "4"]
    assert import_from(tmp_path / "s", "fastvideo", tmp_path / "in", *flags) == 0
    found = [row["ordinal"] for row in rows_of(tmp_path / "in")] + [
        row["ordinal"] for row in rows_of(tmp_path / "in", "rejects")
    ]
    assert sorted(found) == list(range(14))  # six rows each, and one for a file whose rows cannot be counted
    assert {*range(6)} <= {row["ordinal"] for row in rows_of(tmp_path / "in")}
    reasons = {row["ordinal"]: row["reject_reason"] for row in rows_of(tmp_path / "in", "rejects")}
    assert (reasons[12], reasons[13]) == ("damaged_file", "no_latent")


def write_cache(source: Path, numbers: range) -> None:
    for n in numbers:
        path = source / "24x16" / f"{n:02d}.meta"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"video_latents": latent_of(1, 4, 5, 2, 3) + n, "prompt": f"number {n}", "fps": 24}, path)


@pytest.mark.parametrize("step", ["plan-recorded:1", "sample-written:6", "tar-uploaded:2", "unit-committed:2"])
def test_a_killed_import_is_finished_with_the_same_bytes(step: str, tmp_path: Path) -> None:
    write_cache(tmp_path / "s", range(10))
    assert import_from(tmp_path / "s", "automodel", tmp_path / "whole", "--unit-clips", "4") == 0
    flags = ["--from", "automodel", "--vae", str(TINY), "--unit-clips", "4", "--local"]
    command = [sys.executable, "jobs/import_dataset.py", str(tmp_path / "s"), "--output", str(tmp_path / "in"), *flags]
    job = subprocess.run(command, cwd=ROOT, env=os.environ | {VARIABLE: step}, check=False, capture_output=True)
    assert job.returncode == -signal.SIGKILL, job.stdout
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in", "--unit-clips", "4") == 0
    found, expected = (
        {
            path: content
            for path, content in tree(tmp_path / name).items()
            if path.startswith(("shards", "metadata", "index", "plan"))
        }
        for name in ("in", "whole")
    )
    assert found == expected


def test_what_the_source_gains_is_imported_and_what_changes_stops_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cache(tmp_path / "s", range(3))
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in") == 0
    before = {row["id"] for row in rows_of(tmp_path / "in")}
    write_cache(tmp_path / "s", range(3, 5))
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in") == 0
    data = LatentDataset(tmp_path / "in")
    assert len(data) == 5 and before < {*data.columns["id"].to_pylist()}
    (tmp_path / "s" / "24x16" / "00.meta").write_bytes(b"other")
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in") == 1
    assert "when it was planned" in capsys.readouterr().out


def test_encoding_and_importing_do_not_extend_each_other(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cache(tmp_path / "s", range(2))
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in") == 0
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    flags = [
        "--source",
        str(tmp_path / "videos"),
        "--vae",
        str(TINY),
        "--buckets",
        "16x24x17",
        "--local",
        "--cpus",
        "1",
    ]
    assert encode([*flags, "--output", str(tmp_path / "in")]) == 2
    assert "holds imported latents, which is another recipe" in capsys.readouterr().out
    assert import_from(tmp_path / "s", "automodel", output) == 2
    assert "holds encoded latents, which is another recipe" in capsys.readouterr().out
    for program in (lambda *flags: verify([*flags, "--sample", "1"]), lambda *flags: report([*flags])):
        assert program(str(tmp_path / "in"), "--vae", str(TINY)) == 2
        assert "were imported" in capsys.readouterr().out
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in", "--dtype", "float32") == 2
    assert "dtype: float16 -> float32" in capsys.readouterr().out


def test_imported_sets_mix_with_others_only_if_that_is_asked_for(output: Path, tmp_path: Path) -> None:
    write_cache(tmp_path / "s", range(2))
    assert import_from(tmp_path / "s", "automodel", tmp_path / "in") == 0
    sets = {str(output): 0.5, str(tmp_path / "in"): 0.5}
    with pytest.raises(ConfigError, match="allow_imported=True"):
        MixedDataset(sets)
    batches = MixedDataset(sets, allow_imported=True, steps_per_epoch=4).batches(1, rank=0, world_size=1)
    assert len({batch["dataset"] for batch in batches}) == 2
    assert len(MixedDataset({str(tmp_path / "in"): 1.0})) == 2


@pytest.mark.parametrize(
    ("source_format", "message"),
    [("ltx", "no .pt files"), ("fastvideo", "no .parquet files"), ("automodel", "no .meta files")],
)
def test_a_source_without_its_files_is_refused(
    source_format: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    assert import_from(tmp_path / "s", source_format, tmp_path / "in") == 2
    assert message in capsys.readouterr().out
    assert import_from(tmp_path / "absent", source_format, tmp_path / "in") == 2
    assert "there is no folder" in capsys.readouterr().out
