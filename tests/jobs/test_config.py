"""Configuration files: read as the command line is, printed back, and the recipes that come along."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from jobs import config
from jobs.encode_dataset import _recipe, _run, main, parse_arguments
from jobs.flags import FLAGS
from pipeline.errors import ConfigError
from pipeline.recipe import Bucket, Recipe
from stvae import conventions
from stvae.card import OPEN_SORA_CLASS, Card, open_sora_geometry
from tests.sources.test_sources import write_tar
from tests.support import tiny_vaes
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving
from tests.support.paths import ROOT

RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
PLACES = ["--source", "videos", "--output", "out", "--vae", "demo"]


def parse(tmp_path: Path, text: str, *arguments: str) -> argparse.Namespace:
    (tmp_path / "r.yaml").write_text(text)
    return parse_arguments(["--config", str(tmp_path / "r.yaml"), *arguments])


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    return _recipe(arguments, vae="0" * 64)


ON_THE_COMMAND_LINE = (
    "--source a.tar --source b=s3://c/{0..9}.tar --output out --vae demo --buckets 32x32x17,32x56x17 --micro-batch 2,4 "
    "--fps 23.976 --windows stride --stride-frames 8 --max-upscale 2 --compile --column score:float --unit-clips 7 "
    "--gpus 0.5 --cpus 3 --path-column no --local"
)
IN_A_FILE = """
source: [a.tar, "b=s3://c/{0..9}.tar"]
output: out
vae: demo
buckets:
  - 32x32x17
  - 32x56x17
micro_batch: [2, 4]
fps: 23.976
windows: stride
stride-frames: 8
max_upscale: 2
compile: yes
column: score:float
unit-clips: 7
gpus: .5
cpus: 3
path-column: no
local: on
"""


def test_a_file_says_what_the_command_line_says(tmp_path: Path) -> None:
    written, typed = parse(tmp_path, IN_A_FILE), parse_arguments(shlex.split(ON_THE_COMMAND_LINE))
    assert recipe_of(written) == recipe_of(typed) and _run(written) == _run(typed)
    assert recipe_of(written).path_column == "no", "not the false that YAML makes of it"


def test_the_command_line_wins_and_a_later_file_wins_over_an_earlier(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("gpus: 1\nactors: 8\nfps: 12\nwindows: null\n")
    later = ["--config", str(tmp_path / "site.yaml")]
    arguments = parse(tmp_path, IN_A_FILE, *later, "--source", "c.tar", "--no-compile", "--stride-frames", "none")
    assert arguments.source == ("c.tar",) and arguments.compile is False and arguments.stride_frames is None
    assert (arguments.gpus, arguments.actors, arguments.fps, arguments.windows) == (1.0, 8, 12.0, "first")
    assert arguments.unit_clips == 7


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fps: 24", 24.0),
        ("fps: 24.0", 24.0),
        ("fps: '24'", 24.0),
        ("fps: native", "native"),
        ("fps: ~", "native"),
        ("fps:", "native"),
        ("buckets: 480x848x51", (Bucket(51, 480, 848),)),
        ("buckets: 480x848x51, 848x480x51", (Bucket(51, 480, 848), Bucket(51, 848, 480))),
        ("unit-clips: 010", 10),
        ("caption-column: on", "on"),
        ("caption-column: 2026-01-01", "2026-01-01"),
        ("caption-column: 'null'", "null"),
        ("output: 1:30", "1:30"),
        ("source: s3://b/{00..99}.tar", ("s3://b/{00..99}.tar",)),
        ("local: Off", False),
        ("max-upscale: 1.5e0", 1.5),
    ],
)
def test_values_are_read_as_they_are_written_and_not_as_yaml_guesses(
    tmp_path: Path, line: str, expected: object
) -> None:
    (tmp_path / "r.yaml").write_text(line + "\n")
    (value,) = config.read_config(str(tmp_path / "r.yaml")).values()
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nmax-upscal: 2", r"r\.yaml:1: there is no field 'a'; "),
        ("fps: 24\nmax_upscal: 2", r"r\.yaml:2: there is no field 'max_upscal'; did you mean 'max-upscale'\?"),
        ("bucket: 32x32x17", "did you mean 'buckets'"),
        ("sources: a", "did you mean 'source'"),
        ("fps: 1:30", r"r\.yaml:1: fps: expected a number or 'native', got '1:30'"),
        ("fps: [24, 30]", r"fps: expected a value, got a list"),
        ("fps: {rate: 24}", r"fps: expected a value, got fields of its own"),
        ("fps: .inf", r"fps: expected a number or 'native', got '\.inf'"),
        ("\nunit_clips: 12.5", r"r\.yaml:2: unit_clips: expected a whole number, got '12\.5'"),
        ("store: no", r"store: expected one of moments, mean, got 'no'"),
        ("compile: 1", r"compile: expected true or false, got '1'"),
        ("buckets: [480x848]", r"buckets: bucket '480x848' is not HEIGHTxWIDTHxFRAMES"),
        ("buckets:\n - 480x848x51\n -", r"buckets: expected a value, got nothing"),
        ("micro-batch: [2, two]", r"micro-batch: expected a whole number, got 'two'"),
        ("output: ''", r"output: expected some text, got ''"),
        ("fps: 24\nfps: 25", r"r\.yaml:2: field 'fps' is given twice"),
        ("fps: 24\nsource: *.tar", r"r\.yaml:2: not YAML: .*quote texts"),
        ("fps: 24\n\tgpus: 1", r"r\.yaml:2: not YAML"),
        ("- fps", r"expected fields such as 'fps: 24', got a list"),
        ("recipe:\n  fps: 24", r"there is no field 'recipe'"),
        ("dry-run: true", r"'dry-run' is for the command line only"),
        ("fps: !!python/object/apply:os.abort []", r"fps: expected a plain value, got the tag python/object"),
        ("[" * 5000, r"r\.yaml: not YAML|expected fields"),
        ("windows: all\n---\nfps: 24", r"not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_by_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(tmp_path, text, *PLACES, "--buckets", "32x32x17")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bukets", "32x32x17"], "there is no argument '--bukets'; did you mean '--buckets'?"),
        (["--max-upscal=2"], "did you mean '--max-upscale'?"),
        (["--fps", "fast"], "--fps: expected a number or 'native', got 'fast'"),
        (["--dry-run", "few"], "--dry-run: expected a whole number or 'all', got 'few'"),
        (["--clips-per-s", "2"], "--clips-per-s is a figure for --dry-run"),
        (["--config", "/nowhere.yaml"], "there is no file at --config /nowhere.yaml"),
        (["--output", "x"], "--source, --vae, --buckets must be given, on the command line or in a --config file"),
    ],
)
def test_a_wrong_command_line_is_a_sentence_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().out


def test_a_file_may_be_anywhere_and_its_address_is_shown_without_secrets() -> None:
    replies = {"/r.yaml": Reply(b"fps: 12\n"), "/bad.yaml": Reply(b"fps: x\n")}
    with serving(lambda path: replies.get(path.partition("?")[0], Reply(status=404))) as server:
        assert config.read_config(f"{server.url}/r.yaml?token=SECRET") == {"fps": 12.0}
        for name in ("bad", "none"):
            with pytest.raises(ConfigError) as failure:
                config.read_config(f"{server.url}/{name}.yaml?token=SECRET")
            assert f"/{name}.yaml" in str(failure.value) and "SECRET" not in str(failure.value)


AWKWARD = [
    "no",
    "null",
    "1:30",
    "{a..b}",
    "*x",
    "a: b",
    "a # b",
    " a",
    "é",
    "'",
    '"',
    "- a",
    "24",
    "~",
    "!x",
    "%",
    "@a",
]


def test_what_is_printed_gives_the_same_recipe_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = [text for word in AWKWARD for text in ("--source", f"x{word}={word}")]
    lines = [
        [*PLACES, "--buckets", "32x32x17"],
        shlex.split(ON_THE_COMMAND_LINE),
        [*shlex.split(ON_THE_COMMAND_LINE), *allowed, "--max-repeats", "1e-07", "--caption-column", "1:30"],
        *([*PLACES, "--config", str(path)] for path in RECIPES),
    ]
    for line in lines:
        assert main([*line, "--print-config"]) == 0
        printed = capsys.readouterr().out
        assert {name for name in yaml.safe_load(printed)} == FLAGS.keys(), "every field, for any reader of YAML"
        before, after = parse_arguments(line), parse(tmp_path, printed)
        assert recipe_of(after).fingerprint == recipe_of(before).fingerprint
        assert _run(after) == _run(before)
        assert main(["--config", str(tmp_path / "r.yaml"), "--print-config"]) == 0
        assert capsys.readouterr().out == printed


def test_every_flag_that_can_be_given_is_printed_and_read_again(tmp_path: Path) -> None:
    given = {"source": ("x",), "output": "y", "vae": "z", "buckets": (Bucket(17, 32, 32),), "stride_frames": 3}
    given |= {"path_column": "p", "caption_column": "c", "retry_rejects": "all", "ray_address": "auto"}
    values = {flag.dest: given.get(flag.dest, flag.default) for flag in FLAGS.values()}
    assert None not in values.values()
    (tmp_path / "r.yaml").write_text(config.print_config(argparse.Namespace(**values)))
    assert config.read_config(str(tmp_path / "r.yaml")) == values


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    secret = [
        "--source",
        "a.tar",
        "--source",
        "x=https://me:SECRET@host/a.tar",
        "--source",
        "http://host/b.tar?sig=SECRET",
    ]
    more = ["--output", "s3://key:SECRET@bucket/out", "--vae", "s3://b/c?token=SECRET", "--buckets", "32x32x17"]
    assert main([*secret, *more, "--ray-address", "ray://u:SECRET@head:10001", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "SECRET" not in printed
    assert "# source: a.tar, x=https://host/a.tar, http://host/b.tar  # has a password or query" in printed
    assert not yaml.safe_load(printed).keys() & {"source", "output", "vae", "ray-address"}


def test_printing_needs_no_places_but_refuses_what_contradicts_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(RECIPES[0]), "--print-config"]) == 0
    assert "source: null  # required" in capsys.readouterr().out
    assert main(["--config", str(RECIPES[0]), "--windows", "stride", "--print-config"]) == 2
    assert "--stride-frames" in capsys.readouterr().out


PUBLISHED_OPEN_SORA = {"vae_2d": {}, "vae_temporal": {"type": "VAE_Temporal_SD"}, "micro_frame_size": 17}
CLASSES = {"opensora": OPEN_SORA_CLASS, "wan": "AutoencoderKLWan", "ltx": "AutoencoderKLLTXVideo"}


def full_size_card(class_name: str, tiny: Card) -> Card:
    """The card of a published model as far as buckets matter: the geometry of its full configuration, without weights."""
    if class_name == OPEN_SORA_CLASS:
        return dataclasses.replace(tiny, geometry=open_sora_geometry(PUBLISHED_OPEN_SORA))
    with torch.device("meta"):
        model_config = dict(getattr(diffusers, class_name)().config)
    full = conventions.geometry(conventions.complete(model_config | {"_class_name": class_name}))
    return dataclasses.replace(tiny, class_name=class_name, geometry=full)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_fits_its_vae(path: Path, tiny_card: Card) -> None:
    (class_name,) = (name for start, name in CLASSES.items() if path.stem.startswith(start))
    recipe = recipe_of(parse_arguments(["--config", str(path), *PLACES]))
    card = full_size_card(class_name, tiny_card)
    recipe.check_vae(card)
    geometry = card.geometry
    for bucket in recipe.buckets:
        if bucket.num_frames > 1:
            assert geometry.largest_whole_length(bucket.num_frames) == bucket.num_frames, (
                "frames that the VAE would waste"
            )
    assert f"{len(recipe.buckets)} buckets" in path.read_text()


def test_open_soras_frame_counts_are_those_of_its_training(tiny_card: Card) -> None:
    counts = {}
    for path in RECIPES:
        buckets = recipe_of(parse_arguments(["--config", str(path), *PLACES])).buckets
        counts[path.stem] = sorted({bucket.num_frames for bucket in buckets})
    assert counts == {
        "ltx-video": [97, 121],
        "opensora-1.2-240p": [1, 51, 102, 204, 408],
        "opensora-1.2-480p": [1, 51, 102, 204],
        "opensora-1.2-720p": [1, 51, 102],
        "wan-2.1-480p": [81],
    }


PAGE = (ROOT / "jobs" / "guides" / "recipes.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written but for places and machines, which also say that it is a small one."""
    make_clip(tmp_path / "videos" / "a.mp4", 20)
    write_tar(tmp_path / "00000.tar", [("a.mp4", (tmp_path / "videos" / "a.mp4").read_bytes())])
    pq.write_table(pa.table({"path": ["videos/a.mp4"]}), tmp_path / "clips.parquet")
    places = {
        "jobs/recipes": str(ROOT / "jobs" / "recipes"),
        "s3://bucket/videos/{00000..00999}.tar": str(tmp_path / "{00000..00000}.tar"),
        "s3://bucket/": "",
        "/models/OpenSora-VAE-v1.2": str(TINY),
        "/models/Wan2.1-T2V-1.3B-Diffusers": str(tiny_vaes.save("AutoencoderKLWan", tmp_path / "wan")),
        "/models/LTX-Video": str(tiny_vaes.save("AutoencoderKLLTXVideo", tmp_path / "ltx")),
        "--gpus 1 --actors 8 --cpus 8": "--local",
    }
    assert len(COMMANDS) == 4 and all(any(place in command for command in COMMANDS) for place in places)
    monkeypatch.chdir(tmp_path)
    said = []
    for command in COMMANDS:
        for place, here in places.items():
            command = command.replace(place, here)
        program, script, *arguments = shlex.split(command.partition(" > ")[0])
        assert (program, script) == ("python", "jobs/encode_dataset.py")
        assert main(arguments) == 0, command
        said.append(capsys.readouterr().out)
        if " > " in command:
            (tmp_path / command.partition(" > ")[2]).write_text(said[-1])
    assert "dry run: nothing was written" in said[0] and "1 units planned, 0 committed, 1 to do" in said[1]
    assert "windows: first" in said[2] and "dry run: nothing was written" in said[3]
    assert sorted(path.name for path in tmp_path.glob("*latents*")) == ["latents.yaml", "wan-latents"]


def test_the_page_names_every_recipe_and_its_buckets() -> None:
    rows = dict(re.findall(r"\| `([\w.-]+\.yaml)` \|.*\| (\d+) \|", PAGE))
    assert rows.keys() == {path.name for path in RECIPES}
    for path in RECIPES:
        buckets = recipe_of(parse_arguments(["--config", str(path), *PLACES])).buckets
        assert len(buckets) == int(rows[path.name])
