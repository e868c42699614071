"""Flags are the fields of ``Recipe`` and ``Run``: one default per setting, and help for each."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.arguments import Arguments
from jobs.encode_dataset import main, parse_arguments
from jobs.flags import COMPUTED, FLAGS, GROUPS
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.setting import available_cpus
from tests.support.paths import ROOT

REQUIRED = ["--source", "videos", "--output", "out", "--vae", "demo", "--buckets", "32x32x17"]
RENAMED = {
    "column": "columns",
    "allow-host": "private_hosts",
    "max-item-gb": "max_item_bytes",
    "camera": "cameras",
    "source": "sources",
    "decode-memory-gb": "decode_memory_bytes",
    "item-memory-gb": "item_memory_bytes",
}
"""Flags whose field has another name."""


def test_every_field_has_one_flag() -> None:
    fields = [(owner, field.name) for owner in (Recipe, Run) for field in dataclasses.fields(owner)]
    for computed in COMPUTED:
        fields.remove((Recipe, computed))
    assert sorted(map(str, fields)) == sorted(str((flag.owner, flag.field)) for flag in FLAGS.values())
    assert {name: flag.field for name, flag in FLAGS.items() if flag.field != name.replace("-", "_")} == RENAMED


def test_without_flags_every_default_is_the_dataclass_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = parse_arguments(REQUIRED)
    assert arguments.recipe("0" * 64) == Recipe(vae="0" * 64, buckets=(Bucket(17, 32, 32),))
    assert arguments.run() == Run(sources=("videos",), output="out", vae="demo")
    run = arguments.run()
    assert (run.actors, run.gpus, run.cpus) == (None, None, None), "auto"
    assert (run.max_encoders, run.encoder_gpus, run.encoder_cpus) == (1, 0.0, available_cpus())


@pytest.mark.parametrize("word", ["auto", "all"])
def test_a_file_of_an_earlier_version_may_have_its_word_for_the_default(word: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"cpus: {word}\ngpus: auto\nactors: auto\n")
    assert parse_arguments([*REQUIRED, "--config", str(tmp_path / "r.yaml")]).run() == parse_arguments(REQUIRED).run()


def test_the_help_has_each_field_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for title, flags in GROUPS.items():
        section = text[text.index(f"\n{title}:") :].partition("\n\n")[0]
        assert all(f"\n  --{flag.name}" in section for flag in flags), title
    words = " ".join(text.split())
    assert "--unit-clips N Items per output shard, for folders and manifests (default: 128)" in words
    assert (
        "--max-item-gb GB Largest file of an item, in GB of 2^30 bytes; larger ones become rejects (default: 8)"
        in words
    )
    assert all(f"--{name} N|auto " in words for name in ("cpus", "gpus", "actors")) and "(default: auto)" in words


def test_the_environment_gives_the_ray_address_unless_a_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert parse_arguments(REQUIRED).run().ray_address == "10.0.0.1:6379"
    assert parse_arguments([*REQUIRED, "--ray-address", "local"]).run().ray_address == "local"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert parse_arguments(REQUIRED).run().ray_address == "local"


def test_limits_are_flags() -> None:
    limits = "--max-pixels 1000 --max-duration-s 2.5 --max-item-gb 0.25 --decode-memory-gb 2".split()
    arguments = parse_arguments([*REQUIRED, *limits])
    recipe, run = arguments.recipe("0" * 64), arguments.run()
    assert (recipe.max_pixels, recipe.max_duration_s, recipe.max_item_bytes) == (1000, 2.5, 1 << 28)
    assert run.decode_memory_bytes == 2 << 30


@pytest.mark.parametrize(
    "flag", ["--max-pixels", "--max-duration-s", "--max-item-gb", "--decode-memory-gb", "--actors"]
)
def test_a_limit_of_nothing_is_refused_by_its_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, flag, "0"]) == 2
    assert f"error: {flag} must be positive, got 0" in capsys.readouterr().out


def test_a_negative_number_of_gpus_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--gpus", "-1"]) == 2
    assert "error: --gpus must be at least 0, got -1" in capsys.readouterr().out


def test_one_micro_batch_is_for_all_buckets() -> None:
    def micro_batch(*flags: str) -> tuple[int, ...]:
        arguments: Arguments = parse_arguments([*REQUIRED, "--buckets", "32x32x17,32x56x17", *flags])
        return arguments.recipe("0" * 64).micro_batch

    assert micro_batch() == (1, 1)
    assert micro_batch("--micro-batch", "4") == (4, 4)
    assert micro_batch("--micro-batch", "4,2") == (4, 2)


def test_the_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from jobs.encode_dataset import parse_arguments\ntry: parse_arguments(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'ray', 'av', 'diffusers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[]\n")
