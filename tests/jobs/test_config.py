"""Configuration files: parsed like the command line, reported by line when wrong, and printed back."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from jobs import config
from jobs.arguments import Arguments
from jobs.encode_dataset import main, parse_arguments
from jobs.flags import FLAGS
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from tests.support.http_server import Reply, serving
from tests.support.paths import ROOT

RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
URLS = ["--source", "videos", "--output", "out", "--vae", "demo"]


def parse(tmp_path: Path, text: str, *arguments: str) -> Arguments:
    (tmp_path / "r.yaml").write_text(text)
    return parse_arguments(["--config", str(tmp_path / "r.yaml"), *arguments])


def recipe_of(arguments: Arguments) -> Recipe:
    return arguments.recipe(vae_sha256="0" * 64)


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


def test_a_file_means_what_the_command_line_means(tmp_path: Path) -> None:
    written, typed = parse(tmp_path, IN_A_FILE), parse_arguments(shlex.split(ON_THE_COMMAND_LINE))
    assert recipe_of(written) == recipe_of(typed) and written.run() == typed.run()
    assert recipe_of(written).path_column == "no", "not the false that YAML makes of it"


def test_the_command_line_wins_and_a_later_file_wins_over_an_earlier(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("gpus: 1\nactors: 8\nfps: 12\nwindows: null\n")
    later = ["--config", str(tmp_path / "site.yaml")]
    arguments = parse(tmp_path, IN_A_FILE, *later, "--source", "c.tar", "--no-compile", "--stride-frames", "none")
    recipe, run = recipe_of(arguments), arguments.run()
    assert run.sources == ("c.tar",) and recipe.compile is False and recipe.stride_frames is None
    assert (run.gpus, run.actors, recipe.fps, recipe.windows) == (1.0, 8, 12.0, "first")
    assert recipe.unit_clips == 7


GROUPS_OF_BUCKETS = (Bucket(17, 32, 32, "240p"), Bucket(17, 32, 56, "240p"), Bucket(34, 64, 112, "480p"))


@pytest.mark.parametrize(
    "text",
    [
        "buckets: {240p: '32x32x17, 32x56x17', 480p: 64x112x34}",
        "buckets:\n  240p: [32x32x17, 32x56x17]\n  480p:\n    - 64x112x34",
        "buckets: 240p=32x32x17,32x56x17;480p=64x112x34",
        "buckets: [240p=32x32x17, 240p=32x56x17, 480p=64x112x34]",
    ],
)
def test_buckets_in_groups_are_a_mapping_or_what_the_command_line_takes(tmp_path: Path, text: str) -> None:
    written = recipe_of(parse(tmp_path, text, *URLS))
    typed = parse_arguments([*URLS, "--buckets", "240p=32x32x17, 32x56x17 ; 480p=64x112x34", "--micro-batch", "2,1"])
    assert written.buckets == recipe_of(typed).buckets == GROUPS_OF_BUCKETS
    assert recipe_of(typed).micro_batch == (2, 2, 1)
    printed = config.print_config(typed.values)
    assert recipe_of(parse(tmp_path, printed, *URLS)) == recipe_of(typed)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fps: 24", 24.0),
        ("fps: 24.0", 24.0),
        ("fps: '24'", 24.0),
        ("fps: native", None),
        ("fps: ~", None),
        ("fps:", None),
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
        ("caption-column: ''", None),
        ("cpus: all", None),
        ("cpus: 007", 7),
        ("max-item-gb: 0.5", 1 << 29),
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
        ("buckets: 240p=32x32x17,480p=32x56x17", r"bucket '240p=480p=32x56x17' .*; groups are separated by ';'"),
        ("buckets: {240p: {a: 1}}", r"buckets: expected a value, got fields of its own"),
        ("buckets: {a b: 32x32x17}", r"bucket 'a b=32x32x17' is not HEIGHTxWIDTHxFRAMES"),
        ("micro-batch: {a: 1}", r"micro-batch: expected a value, got fields of its own"),
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
def test_an_error_in_a_file_names_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(tmp_path, text, *URLS, "--buckets", "32x32x17")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bukets", "32x32x17"], "there is no argument '--bukets'; did you mean '--buckets'?"),
        (["--max-upscal=2"], "did you mean '--max-upscale'?"),
        (["--fps", "fast"], "--fps: expected a number or 'native', got 'fast'"),
        (["--cpus", "1.5"], "--cpus: expected a whole number or 'auto', got '1.5'"),
        (["--max-item-gb", "8GB"], "--max-item-gb: expected a number, got '8GB'"),
        (["--dry-run", "few"], "--dry-run: expected a whole number or 'all', got 'few'"),
        (["--clips-per-s", "2"], "--clips-per-s is for --dry-run only"),
        (["--config", "/nowhere.yaml"], "there is no file at --config /nowhere.yaml"),
        (["--output", "x"], "--source, --vae, --buckets must be given, on the command line or in a --config file"),
    ],
)
def test_a_wrong_command_line_is_a_sentence_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().out


def test_a_file_may_be_a_url_and_its_url_is_shown_without_secrets() -> None:
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


def test_a_printed_file_gives_the_same_recipe_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = [text for word in AWKWARD for text in ("--source", f"x{word}={word}")]
    command_lines = [
        [*URLS, "--buckets", "32x32x17"],
        shlex.split(ON_THE_COMMAND_LINE),
        [*shlex.split(ON_THE_COMMAND_LINE), *allowed, "--max-repeats", "1e-07", "--caption-column", "1:30"],
        *([*URLS, "--config", str(path)] for path in RECIPES),
    ]
    for line in command_lines:
        assert main([*line, "--print-config"]) == 0
        printed = capsys.readouterr().out
        assert {name for name in yaml.safe_load(printed)} == FLAGS.keys(), "every field, in YAML that any reader parses"
        before, after = parse_arguments(line), parse(tmp_path, printed)
        assert recipe_of(after).fingerprint == recipe_of(before).fingerprint
        assert after.run() == before.run()
        assert main(["--config", str(tmp_path / "r.yaml"), "--print-config"]) == 0
        assert capsys.readouterr().out == printed


OTHER_VALUES: dict[str, object] = {
    "source": ("x",),
    "output": "y",
    "vae": "z",
    "buckets": (Bucket(17, 32, 32),),
    "micro-batch": (2,),
    "fps": 29.97,
    "stride-frames": 3,
    "scene-threshold": 0.4,
    "actors": 2,
    "gpus": 0.5,
    "cpus": 3,
    "path-column": "p",
    "caption-column": "c",
    "class-column": "label",
    "column": ("score:float", "views:int"),
    "root": "s3://bucket/videos",
    "camera": ("top", "wrist"),
    "allow-host": ("media.internal",),
    "max-item-gb": 3 << 29,
    "decode-memory-gb": (4 << 30) + 1,
    "item-memory-gb": 1 << 29,
    "retry-rejects": "all",
    "ray-address": "auto",
}


def test_every_value_is_printed_and_read_again(tmp_path: Path) -> None:
    values = {name: OTHER_VALUES.get(name, flag.default) for name, flag in FLAGS.items()}
    assert not {None, dataclasses.MISSING} & {*values.values()}, "OTHER_VALUES needs a value for a new flag"
    (tmp_path / "r.yaml").write_text(config.print_config(values))
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


def test_printing_needs_no_urls_but_refuses_contradictions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(RECIPES[0]), "--print-config"]) == 0
    assert "source: null  # required" in capsys.readouterr().out
    assert main(["--config", str(RECIPES[0]), "--windows", "stride", "--print-config"]) == 2
    assert "--stride-frames" in capsys.readouterr().out


LAUGHS = "a: &a [x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "no field 'a'"),
        ("source:\n- &a [x, x]\n- &b [*a, *a]\n- [*b, *b]\n", "source: expected a value, got a list"),
        ("source: &a [*a]\n", "source: expected a value, got a list"),
        ("buckets: &a {x: *a}\n", "buckets: expected a value, got fields of its own"),
        ("source: " + "[" * 100_000, "nested too deeply"),
        ("? " * 100_000, "nested too deeply"),
        ("fps: 1\nfps: 2\n", "r.yaml:2: field 'fps' is given twice"),
        ("max-pixels: 1\nmax_pixels: 2\n", "r.yaml:2: field 'max_pixels' is given twice"),
        ("buckets:\n  a: [32x32x1]\n  a: [64x64x1]\n", "buckets: group 'a' is given twice"),
        ("<<: {fps: 1}\n", "no field '<<'"),
        ("source: !!python/object/apply:os.system [x]\n", "got the tag python/object/apply:os.system"),
    ],
    ids=lambda value: value[:12],
)
def test_yaml_with_aliases_deep_lists_repeated_fields_or_tags_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.read_config(str(tmp_path / "r.yaml"))
    assert message in str(raised.value)
