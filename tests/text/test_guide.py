"""Runs the commands and the training loop of the guide, and checks its table of models."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.encode_text import parse_arguments
from pipeline.loader import LatentDataset
from pipeline.text.encoders.table import FAMILIES
from tests.project.test_pages import jobs
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.paths import ROOT

PAGE = "jobs/guides/text.md"
TEXT = (ROOT / PAGE).read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT[TEXT.index("| to train |") : TEXT.index("**Cosmos-Predict 2.5")].strip().splitlines()[2:]
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the words of the page on this machine."""
    folder = tmp_path_factory.mktemp("guide")
    add_unit(folder / "latents", [Captions(caption=f"number {n}", long=f"the number {n}", score=5.5) for n in range(8)])
    finish(folder / "latents")
    ids = LatentDataset(folder / "latents").columns["id"]
    pq.write_table(pa.table({"id": ids, "long_caption": ["long"] * 8}), folder / "recaptioned.parquet")
    return {
        "s3://bucket/latents": str(folder / "latents"),
        "s3://bucket/recaptioned.parquet": str(folder / "recaptioned.parquet"),
        "/models/Wan2.1-T2V-1.3B-Diffusers": "demo",
        "/models/t5-v1_1-xxl": "demo",
        "meta_aesthetic": "meta_score",
        "--family open-sora-1.2": "",
        "--camera-column meta_camera": "",
        "--gpus 1 --actors 8": "",
    }


def test_the_commands_run_and_the_training_loop_reads_what_they_made(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for script, *words in jobs(PAGE):
        line = shlex.join(words)
        for word, here in places.items():
            line = line.replace(word, here)
        local = ["--local", "--cpus", "1"] if script == "jobs/encode_text.py" else []
        main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
        assert main([*shlex.split(line), *local]) == 0, (script, line)
    assert "17 distinct" in capsys.readouterr().out, "two captions of 8 samples, and the empty one"
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    names: dict[str, Any] = {}
    exec(block.replace("s3://bucket/latents", places["s3://bucket/latents"]), names)  # noqa: S102
    assert set(names["inputs"]) == {"latents", "context", "context_lengths"} and len(names["inputs"]["context"]) == 8


def test_every_family_is_in_the_table_with_flags_that_are_accepted() -> None:
    flags = [" ".join(re.findall(r"`(--[^`]+)`", row[2])) for row in ROWS]
    for each in flags:
        settings = parse_arguments(["out", "--encoder", "x", "--layer", "x", "--captions", "c", *each.split()]).settings
        assert settings.options.family is None or settings.options.family in FAMILIES
    assert len(ROWS) == len(FAMILIES) + 1, "one for each family, and LTX-2 after its connector"
    (large,) = [row[0] for row, each in zip(ROWS, flags, strict=True) if each == "--allow-large"]
    assert large == "Cosmos-Predict 2.5"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_sizes_are_those_of_the_table_of_families(row: list[str]) -> None:
    families = (Path(ROOT) / "pipeline/text/encoders/README.md").read_text()
    assert row[4] in families or row[0] == "MiniMax-H3"
