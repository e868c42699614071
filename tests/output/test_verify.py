"""Damage to an output after its commit is found in every kind of file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.verify_dataset import main
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_card: Card) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    for seed in range(4):
        make_clip(folder / "videos" / f"{seed}.mp4", 20, size=(32, 56), seed=seed)
    (folder / "videos" / "bad.mp4").write_text("not a video")
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, 32, 56),), micro_batch=(1,), unit_clips=3)
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=(f"clips={folder / 'videos'}",), local=True, cpus=2)
    recipe = dataclasses.replace(recipe, conditioning="first")
    encode(recipe, dataclasses.replace(run, max_rejects=1.0), tiny_card, say=lambda line: None)
    return folder / "out"


@pytest.fixture
def output(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "out")
    return tmp_path / "out"


def problems(output: Path) -> list[tuple[str, str]]:
    code = main([str(output)])
    found = json.loads((output / "verify.json").read_text())["problems"]
    assert code == (1 if found else 0)
    return [(where, what) for where, what in found]


def largest_shard(output: Path) -> Path:
    return max((output / "shards").iterdir(), key=lambda path: path.stat().st_size)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def second_sample(path: Path) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[3]


def test_a_sound_output_has_no_problems(output: Path, capsys: Any) -> None:
    assert problems(output) == []
    printed = capsys.readouterr().out
    assert "2 units, 2 shards, 4 samples" in printed and "no problems" in printed


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: cut(path, second_sample(path).offset), "bytes, found"),
        (lambda path: cut(path, second_sample(path).offset + 100), "bytes, found"),
        (lambda path: overwrite(path, second_sample(path).offset + 150, b"x"), "sha256"),
        (lambda path: overwrite(path, second_sample(path).offset_data + 300, b"\x7f\x7f"), "is damaged"),
        (lambda path: path.unlink(), "found missing"),
    ],
    ids=["cut at a member", "cut in a header", "one header byte", "a tensor", "gone"],
)
def test_damage_to_a_shard_is_found(output: Path, damage: Callable[[Path], None], expected: str) -> None:
    shard = largest_shard(output)
    damage(shard)
    found = problems(output)
    assert found and all(where == f"shards/{shard.name}" for where, _ in found)
    assert any(expected in what for _, what in found)


def test_a_damaged_tensor_is_named(output: Path) -> None:
    shard = largest_shard(output)
    member = second_sample(shard)
    overwrite(shard, member.offset_data + 300, b"\x7f\x7f")
    assert [what for _, what in problems(output) if member.name.partition(".")[0] in what]


def test_damage_to_metadata_and_index_is_found(output: Path) -> None:
    metadata = min((output / "metadata").iterdir())
    data = metadata.read_bytes()
    overwrite(metadata, 40, b"\x00\xff\x00\xff")
    assert f"metadata/{metadata.name}" in dict(problems(output))
    metadata.write_bytes(data)
    index = json.loads((output / "index" / "0000.json").read_text())
    (output / index["samples"][0]).unlink()
    found = dict(problems(output))
    assert "missing" in found[index["samples"][0]] and "index/0000.json" in found


def test_missing_unit_metadata_is_found(output: Path) -> None:
    metadata = min((output / "metadata").iterdir())
    metadata.unlink()
    found = dict(problems(output))
    assert "missing" in found[f"metadata/{metadata.name}"] and "is in no unit metadata" in found["index/0000.json"]


def test_samples_that_are_encoded_again_equal_what_is_stored(sound: Path, output: Path, capsys: Any) -> None:
    source = f"clips={sound.parent / 'videos'}"
    assert main([str(output), "--sample", "3", "--vae", str(TINY), "--cpus", "2", "--source", source]) == 0
    compared = json.loads((output / "verify.json").read_text())["compared"]
    assert len(compared) == 3
    assert all(sample["max_abs"] < 5e-3 and sample["cosine"] > 0.99999 for sample in compared)
    assert "PSNR" in capsys.readouterr().out


def test_a_sample_whose_source_has_changed_is_reported(sound: Path, tmp_path: Path, capsys: Any) -> None:
    output, videos = tmp_path / "out", sound.parent / "videos"
    shutil.copytree(sound, output)
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    make_clip(moved / "1.mp4", 20, size=(32, 56), seed=9)
    assert main([str(output), "--sample", "4", "--vae", str(TINY), "--source", f"clips={moved}"]) == 1
    assert "1.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--sample", "2"], "needs --vae"), (["--sample", "1", "--vae", "demo"], "is not the one that made")],
)
def test_arguments_that_make_no_sense_are_refused(
    output: Path, arguments: list[str], expected: str, capsys: Any
) -> None:
    assert main([str(output), *arguments]) == 2
    assert expected in capsys.readouterr().out


def test_a_folder_that_is_not_an_output_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().out
