"""Exports for trainers: every tensor is the loader's, in the names, types and files that the trainer's reader takes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from jobs.export_dataset import main
from pipeline.errors import ConfigError
from pipeline.export.options import ExportOptions
from pipeline.export.targets import musubi
from pipeline.export.targets.automodel import AutomodelTarget
from pipeline.export.targets.ltx import LtxTarget
from pipeline.export.targets.pickles import pickle_tensor, unpickle_tensor
from pipeline.loader import LatentDataset
from tests.support.export_set import LAYER, SAMPLES, Expected, write_mixed_set
from tests.text.encoders import makers

VIDEOS = "num_frames > 1"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_set(tmp_path_factory.mktemp("trainers") / "out")


@pytest.fixture(scope="module")
def expected(output: Path) -> Expected:
    return Expected(output)


def export(output: Path, target: str, folder: Path, *flags: str) -> int:
    return main([str(output), "--to", target, "--output", str(folder), "--text", LAYER, "--local", *flags])


def load(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def by_id(paths: Iterator[Path]) -> dict[str, Path]:
    """The files of samples by the id that their names end with."""
    return {path.stem.rpartition("-")[2]: path for path in paths}


def test_ltx_has_latents_and_conditions_under_one_name(output: Path, expected: Expected, tmp_path: Path) -> None:
    assert export(output, "ltx", tmp_path) == 0
    latents = by_id((tmp_path / ".precomputed" / "latents").rglob("*.pt"))
    assert sorted(latents) == sorted(expected.ids)
    for id, path in latents.items():
        values = load(path.read_bytes())
        assert values["latents"].dtype == torch.bfloat16
        assert torch.equal(values["latents"], expected.latents[id].to(torch.bfloat16))
        assert [values[name] for name in ("num_frames", "height", "width")] == list(expected.latents[id].shape[1:])
        is_image = expected.latents[id].shape[1] == 1
        assert values["fps"] == (1.0 if is_image else pytest.approx(expected.fps[id]))
        conditions = path.parents[2] / "conditions" / path.relative_to(tmp_path / ".precomputed" / "latents")
        text = load(conditions.read_bytes())
        rows, is_token = expected.text[id].padded()
        assert torch.equal(text["video_prompt_embeds"], rows) and torch.equal(text["prompt_attention_mask"], is_token)
        assert torch.equal(text["audio_prompt_embeds"], rows), "the trainer stops without it"


@pytest.mark.parametrize(
    ("cut", "note"),
    [
        (
            "text: all hidden states, normalized and projected",
            "for LTX-2's trainer; FastVideo .* made with --connector",
        ),
        ("video: all hidden states after the connector", "for FastVideo; LTX-2's trainer .* made without --connector"),
    ],
)
def test_ltx_says_which_trainer_takes_the_embeddings(output: Path, cut: str, note: str) -> None:
    data = LatentDataset(output, text=LAYER)
    assert data.text is not None
    card = dataclasses.replace(data.text.card, family="ltx-2", cut=cut)
    data.text = dataclasses.replace(data.text, card=card)
    assert re.search(note, LtxTarget().notes(data)[-1])


def test_automodel_refuses_ltx_2_without_audio(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LatentDataset(output, text=LAYER)
    monkeypatch.setattr(type(data.card), "class_name", "AutoencoderKLLTX2Video")
    with pytest.raises(ConfigError, match="latents of audio, which an output does not have; use --to ltx"):
        AutomodelTarget().check(data, ExportOptions())


def test_automodel_lists_every_file_with_an_absolute_path(output: Path, expected: Expected, tmp_path: Path) -> None:
    assert export(output, "automodel", tmp_path) == 0
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    entries = [entry for name in metadata["shards"] for entry in json.loads((tmp_path / name).read_text())]
    assert metadata["total_items"] == len(entries) == len(expected.ids)
    for entry in entries:
        path = Path(entry["cache_file"])
        id = path.stem.rpartition("-")[2]
        values = load(path.read_bytes())
        assert values["video_latents"].dtype == torch.float16
        assert torch.equal(values["video_latents"][0], expected.latents[id].to(torch.float16))
        assert torch.equal(values["text_embeddings"][0], expected.text[id].padded()[0])
        assert values["prompt"] == entry["prompt"] == expected.captions[id]
        assert path.parent.name == "x".join(map(str, entry["bucket_resolution"]))


def test_automodels_paths_can_be_those_of_another_machine(output: Path, tmp_path: Path) -> None:
    assert export(output, "automodel", tmp_path, "--root", "/mnt/cache/") == 0
    (name, *_) = json.loads((tmp_path / "metadata.json").read_text())["shards"]
    assert json.loads((tmp_path / name).read_text())[0]["cache_file"].startswith("/mnt/cache/")


def test_fastvideo_has_raw_means_and_trimmed_texts_as_float32(output: Path, expected: Expected, tmp_path: Path) -> None:
    assert export(output, "fastvideo", tmp_path, "--where", VIDEOS) == 0
    rows = [row for path in tmp_path.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["id"] for row in rows} == {id for id in expected.ids if expected.latents[id].shape[1] > 1}
    for row in rows:
        latents, text = (
            torch.frombuffer(bytearray(row[f"{name}_bytes"]), dtype=torch.float32).view(row[f"{name}_shape"])
            for name in ("vae_latent", "text_embedding")
        )
        assert torch.equal(latents, expected.raw[row["id"]]) and row["num_frames"] == latents.shape[1]
        assert torch.equal(text, expected.text[row["id"]].tokens().float())
        assert row["caption"] == expected.captions[row["id"]] and row["media_type"] == "video"


def test_fastvideo_refuses_several_sizes_and_names_filters(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(output, "fastvideo", tmp_path / "e") == 2
    printed = capsys.readouterr().out
    assert "holds clips of one size only" in printed
    assert "'num_frames == 17 and height == 16 and width == 24'  5 samples" in printed


def test_fastgen_has_tars_of_tensors(output: Path, expected: Expected, tmp_path: Path) -> None:
    assert export(output, "fastgen", tmp_path) == 0
    seen = set()
    for path in tmp_path.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for id in {name.partition(".")[0] for name in members}:
            seen.add(id)
            assert torch.equal(load(members[f"{id}.latent.pth"]), expected.latents[id])
            row = expected.rows[id]
            assert path.parent.name == f"{row['height']}x{row['width']}x{row['num_frames']}", (
                "the reader stacks a folder"
            )
            assert torch.equal(load(members[f"{id}.txt_emb.pth"]), expected.text[id].padded()[0])
            assert members[f"{id}.txt"].decode() == expected.captions[id]
    assert seen == set(expected.ids)


def test_veomni_has_pickled_moments_and_texts(output: Path, expected: Expected, tmp_path: Path) -> None:
    assert export(output, "veomni", tmp_path) == 0
    files = sorted(tmp_path.rglob("*.parquet"))
    assert sorted((tmp_path / "data").iterdir()) == files, "the reader takes every file of its folder for data"
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    found = [pickle.loads(row["latents"])[0] for row in rows]  # noqa: S301 (as VeOmni reads them)
    assert len(found) == len(expected.ids)
    for latents, row in zip(found, rows, strict=True):
        assert any(
            torch.equal(latents, expected.moments[id])
            for id in expected.ids
            if latents.shape == expected.moments[id].shape
        )
        assert torch.equal(unpickle_tensor(row["latents"])[0], latents)
        assert unpickle_tensor(row["context"]).shape == (1, 64, 32)


@pytest.fixture(scope="module")
def output_of_open_sora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a text layer of T5 and CLIP."""
    folder = tmp_path_factory.mktemp("open-sora")
    encoders = {
        "": (makers.model("T5EncoderModel", makers.t5_config()), makers.t5_tokenizer()),
        "_2": (makers.model("CLIPTextModel", makers.clip_config()), makers.clip_tokenizer()),
    }
    encoder = makers.save(folder / "text", encoders)
    return write_mixed_set(folder / "out", encoder=[str(encoder), "--family", "open-sora-2"])


def test_open_sora_needs_t5_and_clip(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its reader puts zeros in the place of a missing file, and goes on."""
    assert export(output, "open-sora", tmp_path) == 2
    assert "needs rows of T5 and the vector of CLIP, and the layer 't5' has tokens only" in capsys.readouterr().out


def test_open_sora_has_a_table_of_paths(output_of_open_sora: Path, tmp_path: Path) -> None:
    expected = Expected(output_of_open_sora)
    assert export(output_of_open_sora, "open-sora", tmp_path) == 0
    with (tmp_path / "dataset.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected.ids)
    for row in rows:
        id = Path(row["latents_path"]).stem
        assert torch.equal(load(Path(row["latents_path"]).read_bytes()), expected.latents[id].to(torch.bfloat16))
        assert torch.equal(load(Path(row["text_t5_path"]).read_bytes()), expected.text[id].padded()[0])
        clip = load(Path(row["text_clip_path"]).read_bytes())
        assert clip.shape == (24,) and torch.equal(clip, expected.arrays[id]["pooled"].values)
        assert row["text"] == expected.captions[id]
        is_image = row["num_frames"] == "1"
        assert row["fps"] == "" if is_image else float(row["fps"]) == pytest.approx(expected.fps[id])


def test_musubi_has_two_files_per_sample(
    output: Path, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(output, "musubi", tmp_path / "refused") == 2  # no architecture has this VAE
    wan = musubi.ARCHITECTURES["AutoencoderKLWan"]
    monkeypatch.setitem(musubi.ARCHITECTURES, expected.data.card.class_name, wan)
    assert export(output, "musubi", tmp_path / "e") == 0
    latents = [path for path in (tmp_path / "e").glob("*_wan.safetensors")]
    assert len(latents) == len(expected.ids)
    for path in latents:
        key, position, size, _ = path.name.split("_")
        id = key.rpartition("-")[2]
        t, h, w = expected.latents[id].shape[1:]
        with safe_open(path, "pt") as file:
            assert torch.equal(
                file.get_tensor(f"latents_{t}x{h}x{w}_bfloat16"), expected.latents[id].to(torch.bfloat16)
            )
            facts = file.metadata()
        assert position == f"00000-{int(facts['frame_count']):03d}"
        assert size == f"{int(facts['width']):04d}x{int(facts['height']):04d}"
        with safe_open(path.with_name(f"{key}_wan_te.safetensors"), "pt") as file:
            assert torch.equal(file.get_tensor("varlen_t5_bfloat16"), expected.text[id].tokens())


def test_what_is_not_exported_is_counted(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(output, "fastgen", tmp_path / "one") == 0
    printed = capsys.readouterr().out
    assert "not exported: 1 sample: no caption" in printed
    assert "not exported: 1 further caption (--caption each exports a sample once per caption)" in printed
    description = json.loads((tmp_path / "one" / "export.json").read_text())
    assert description["left_out"] == {"no caption": 1} and description["samples"] == len(SAMPLES) - 1


def test_each_caption_is_exported_with_its_own_embedding(
    output: Path, expected: Expected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(output, "parquet", tmp_path, "--caption", "each", "--uncaptioned") == 0
    assert "6 samples as 7 rows, one per caption" in capsys.readouterr().out
    rows = [row for path in tmp_path.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    texts = {row["caption"]: torch.tensor(row["text_t5"]).view(row["text_t5_shape"]) for row in rows}
    assert {"first of two", "second of two", ""} <= set(texts)
    assert not torch.equal(texts["first of two"], texts["second of two"][: len(texts["first of two"])])
    assert len({row["id"] for row in rows}) == 7


def test_a_target_that_needs_text_is_refused_without_a_layer(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(output), "--to", "ltx", "--output", str(tmp_path), "--local"]) == 2
    assert "ltx needs text embeddings: give --text LAYER" in capsys.readouterr().out


class Evil:
    def __reduce__(self) -> Any:
        return list, ((1, 2),)


def test_equal_tensors_have_equal_pickles() -> None:
    tensors = [torch.arange(6, dtype=torch.bfloat16).view(2, 3) for _ in range(2)]
    first, second = (pickle_tensor(tensor) for tensor in tensors)
    assert first == second and torch.equal(pickle.loads(first), tensors[0])  # noqa: S301 (as the trainers read it)


def test_a_pickle_that_names_anything_else_is_refused() -> None:
    assert torch.equal(unpickle_tensor(pickle_tensor(torch.arange(6).view(2, 3))), torch.arange(6).view(2, 3))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.list has no place in a pickle of tensors"):
        unpickle_tensor(pickle.dumps(Evil()))
