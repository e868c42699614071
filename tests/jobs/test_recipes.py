"""The recipes that ship with the project: they fit their VAEs, and every command of their page runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor

from jobs.encode_dataset import main, parse_arguments
from pipeline.recipe import Recipe
from stvae import conventions
from stvae.card import OPEN_SORA_CLASS, Card, open_sora_geometry
from stvae.checkpoints.published import PUBLISHED
from tests.sources.test_sources import write_tar
from tests.support import tiny_vaes
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.paths import ROOT

RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
RECIPES_BY_NAME = {path.stem: path for path in RECIPES}
URLS = ["--source", "videos", "--output", "out", "--vae", "demo"]


def read_recipe(path: Path) -> Recipe:
    return parse_arguments(["--config", str(path), *URLS]).recipe(vae_sha256="0" * 64)


PUBLISHED_OPEN_SORA = {"vae_2d": {}, "vae_temporal": {"type": "VAE_Temporal_SD"}, "micro_frame_size": 17}
CLASSES = {
    # the beginning of a recipe's name: the class, and the published model whose sizes differ from the class's defaults
    "opensora": (OPEN_SORA_CLASS, None),
    "wan-2.1": ("AutoencoderKLWan", "Wan 2.1"),
    "wan-2.2-14b": ("AutoencoderKLWan", "Wan 2.1"),
    "wan-2.2-5b": ("AutoencoderKLWan", "Wan 2.2 5B"),
    "ltx-video": ("AutoencoderKLLTXVideo", "LTX-Video 0.9.5"),
    "ltx-2": ("AutoencoderKLLTX2Video", "LTX-2"),
    "hunyuanvideo-1.5": ("AutoencoderKLHunyuanVideo15", "HunyuanVideo 1.5"),
    "cogvideox": ("AutoencoderKLCogVideoX", "CogVideoX 5B"),
    "minimax-h3": ("AutoencoderKLMiniMaxH3", None),
}


def full_size_card(class_name: str, title: str | None, tiny: Card) -> Card:
    """The card of a published model, with the geometry of its full configuration and no weights."""
    if class_name == OPEN_SORA_CLASS:
        return dataclasses.replace(tiny, geometry=open_sora_geometry(PUBLISHED_OPEN_SORA))
    published = next((model.config for model in PUBLISHED if model.title == title), {})
    with torch.device("meta"):
        model_config = dict(getattr(diffusers, class_name)(**published).config)
    full = conventions.geometry(conventions.with_defaults(model_config | {"_class_name": class_name}))
    return dataclasses.replace(tiny, class_name=class_name, geometry=full)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_fits_its_vae(path: Path, tiny_card: Card) -> None:
    start = max((start for start in CLASSES if path.stem.startswith(start)), key=len)
    recipe = read_recipe(path)
    card = full_size_card(*CLASSES[start], tiny_card)
    recipe.check_vae(card)
    geometry = card.geometry
    for bucket in recipe.buckets:
        if bucket.num_frames > 1:
            assert geometry.largest_whole_length(bucket.num_frames) == bucket.num_frames, "the VAE would drop frames"
    assert re.search(rf"\b{len(recipe.buckets)}\s+(?:# )?buckets?\b", path.read_text())


def test_sizes_and_rates_are_those_of_the_models_training() -> None:
    found = {}
    for path in RECIPES:
        recipe = read_recipe(path)
        frames = sorted({bucket.num_frames for bucket in recipe.buckets})
        found[path.stem] = (frames, recipe.fps, max(bucket.height * bucket.width for bucket in recipe.buckets))
    assert found == {
        "cogvideox": ([49], 8, 480 * 720),
        "cogvideox-1.5": ([81, 161], 16, 768 * 1360),
        "hunyuanvideo-1.5-480p": ([121], 24, 640 * 640),
        "hunyuanvideo-1.5-720p": ([121], 24, 960 * 960),
        "ltx-2": ([121], 24, 640 * 640),
        "ltx-video": ([97, 121], 24, 640 * 640),
        "minimax-h3": ([124], 24, 768 * 1344),
        "opensora-1.2-240p": ([1, 51, 102, 204, 408], None, 320 * 320),
        "opensora-1.2-480p": ([1, 51, 102, 204], None, 640 * 640),
        "opensora-1.2-720p": ([1, 51, 102], None, 720 * 1280),
        "wan-2.1-480p": ([81], 16, 480 * 832),
        "wan-2.2-14b-480p": ([81], 16, 480 * 832),
        "wan-2.2-14b-720p": ([81], 16, 720 * 1280),
        "wan-2.2-5b": ([121], 24, 704 * 1280),
    }


@pytest.mark.parametrize("size", [640, 960])
def test_shapes_of_hunyuan_video_1_5_are_those_of_its_pipeline(size: int) -> None:
    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=16)
    name = {640: "480p", 960: "720p"}[size]
    ratios = ((9, 16), (16, 9), (1, 1), (3, 4), (4, 3))  # height to width
    expected = {processor.calculate_default_height_width(*ratio, size) for ratio in ratios}
    buckets = {
        (bucket.height, bucket.width) for bucket in read_recipe(RECIPES_BY_NAME[f"hunyuanvideo-1.5-{name}"]).buckets
    }
    assert buckets == expected


PAGE = (ROOT / "jobs" / "guides" / "recipes.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, except for the URLs, and with --local instead of the GPUs."""
    make_clip(tmp_path / "videos" / "a.mp4", 20)
    write_tar(tmp_path / "00000.tar", [("a.mp4", (tmp_path / "videos" / "a.mp4").read_bytes())])
    pq.write_table(pa.table({"path": ["videos/a.mp4"]}), tmp_path / "clips.parquet")
    replacements = {
        "jobs/recipes": str(ROOT / "jobs" / "recipes"),
        "s3://bucket/videos/{00000..00999}.tar": str(tmp_path / "{00000..00000}.tar"),
        "s3://bucket/": "",
        "/models/OpenSora-VAE-v1.2": str(TINY),
        "/models/Wan2.1-T2V-1.3B-Diffusers": str(tiny_vaes.save("AutoencoderKLWan", tmp_path / "wan")),
        "/models/LTX-Video": str(tiny_vaes.save("AutoencoderKLLTXVideo", tmp_path / "ltx")),
        "--gpus 1 --actors 8 --cpus 8": "--local",
    }
    assert len(COMMANDS) == 4 and all(any(text in command for command in COMMANDS) for text in replacements)
    monkeypatch.chdir(tmp_path)
    printed = []
    for command in COMMANDS:
        for text, replacement in replacements.items():
            command = command.replace(text, replacement)
        program, script, *arguments = shlex.split(command.partition(" > ")[0])
        assert (program, script) == ("python", "jobs/encode_dataset.py")
        assert main(arguments) == 0, command
        printed.append(capsys.readouterr().out)
        if " > " in command:
            (tmp_path / command.partition(" > ")[2]).write_text(printed[-1])
    assert "dry run: nothing was written" in printed[0] and "1 unit planned, 0 committed, 1 to do" in printed[1]
    assert "windows: first" in printed[2] and "dry run: nothing was written" in printed[3]
    assert sorted(path.name for path in tmp_path.glob("*latents*")) == ["latents.yaml", "wan-latents"]


def test_the_page_names_every_recipe_and_its_buckets() -> None:
    rows = dict(re.findall(r"\| `([\w.-]+\.yaml)` \|.*\| (\d+) \|", PAGE))
    assert rows.keys() == {path.name for path in RECIPES}
    for path in RECIPES:
        buckets = read_recipe(path).buckets
        assert len(buckets) == int(rows[path.name])
