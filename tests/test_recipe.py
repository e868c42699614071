from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.output.dataset import differing_fields
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.golden import TINY
from tests.support.oracle import tree
from tests.support.painted import SIZE, painted, write_video

OTHER_VALUES = {
    "vae": "0" * 64,
    "buckets": (Bucket(34, 32, 32), Bucket(17, 32, 56)),
    "micro_batch": (2, 1),
    "fps": 24.0,
    "windows": "all",
    "stride_frames": 8,
    "remainder": "shorten",
    "max_upscale": 2.0,
    "crop": "top",
    "crop_seed": 7,
    "max_repeats": 0.5,
    "interlaced": "deinterlace",
    "dolby_vision": "keep",
    "hdr": "tonemap",
    "resize": "opensora",
    "store": "mean",
    "dtype": "float32",
    "compute_dtype": "bfloat16",
    "compile": True,
    "conditioning": "first",
    "spatial_posterior": "sample",
    "decoder": "decord",
    "path_column": "p",
    "caption_column": "c",
    "class_column": "label",
    "root": "/data/videos",
    "cameras": ("observation.images.top",),
    "range_columns": ("from", "to"),
    "columns": ("score:float",),
    "range_unit": "frames",
    "scenes": "adaptive",
    "scene_threshold": 30.0,
    "min_scene_s": 1.0,
    "scene_detector": "scenedetect-headless 0.7.2",
    "private_hosts": ("media.internal",),
    "trust_proxy": True,
    "unit_clips": 7,
    "max_pixels": 10**6,
    "max_duration_s": 60.0,
    "max_item_bytes": 10**9,
    "origin": "import",
    "imported_latents": "raw",
}


def test_every_field_of_a_recipe_changes_its_fingerprint_and_is_named(recipe: Recipe) -> None:
    assert OTHER_VALUES.keys() == {field.name for field in dataclasses.fields(Recipe)}, "a new field is not listed here"
    for name, value in OTHER_VALUES.items():
        changes = {name: value} | NEEDED.get(name, {})
        other = dataclasses.replace(recipe, **changes)
        assert other.fingerprint != recipe.fingerprint, name
        assert any(line.startswith(f"{name}: ") for line in differing_fields(recipe.to_json(), other.to_json()))


NEEDED: dict[str, dict[str, Any]] = {
    "stride_frames": {"windows": "stride"},
    "scene_threshold": {"scenes": "content"},
    "crop_seed": {"crop": "random"},
}
"""Other fields that a changed field goes with."""

DEFAULTS: dict[str, object] = {
    "vae": dataclasses.MISSING,
    "buckets": dataclasses.MISSING,
    "micro_batch": (1,),
    "fps": None,
    "windows": "first",
    "stride_frames": None,
    "remainder": "skip",
    "max_upscale": 1.0,
    "crop": "center",
    "crop_seed": 0,
    "max_repeats": 0.25,
    "interlaced": "skip",
    "dolby_vision": "reject",
    "hdr": "keep",
    "resize": "bicubic",
    "store": "moments",
    "dtype": "float16",
    "compute_dtype": "auto",
    "compile": False,
    "spatial_posterior": "mode",
    "conditioning": "none",
    "decoder": "pyav",
    "path_column": None,
    "caption_column": None,
    "class_column": None,
    "root": None,
    "cameras": (),
    "range_columns": (),
    "columns": (),
    "range_unit": "seconds",
    "scenes": "none",
    "scene_threshold": None,
    "min_scene_s": 0.5,
    "scene_detector": None,
    "unit_clips": 128,
    "private_hosts": (),
    "trust_proxy": False,
    "max_pixels": 8192 * 8192,
    "max_duration_s": 6 * 3600.0,
    "max_item_bytes": 8 << 30,
    "origin": "encode",
    "imported_latents": "none",
}
"""Add a line for a new field. Never change one: outputs that were made with the old default would be refused."""


def test_a_default_never_changes_once_released() -> None:
    fields = {field.name: (field.default, type(field.default)) for field in dataclasses.fields(Recipe)}
    assert fields == {name: (default, type(default)) for name, default in DEFAULTS.items()}


def test_a_field_that_has_its_default_leaves_the_fingerprint_as_it_is(recipe: Recipe) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class LaterRecipe(Recipe):
        """A recipe as a later version may have it."""

        soundtrack: bool = False

    recorded = recipe.to_json()
    later = LaterRecipe.from_json(recorded)
    assert (later.soundtrack, later.fingerprint) == (False, recipe.fingerprint)
    assert dataclasses.replace(later, soundtrack=True).fingerprint != recipe.fingerprint
    with pytest.raises(IntegrityError, match="does not know: soundtrack"):
        Recipe.from_json(later.to_json())


def test_a_recorded_recipe_is_read_strictly(recipe: Recipe) -> None:
    values = recipe.to_json()
    with pytest.raises(IntegrityError, match="the recipe lacks vae, buckets"):
        Recipe.from_json({name: value for name, value in values.items() if name not in ("vae", "buckets")})
    with pytest.raises(IntegrityError, match="dtype 'float8', which this program does not know"):
        Recipe.from_json(values | {"dtype": "float8"})
    required = {name: values[name] for name in ("vae", "buckets", "micro_batch")}
    assert Recipe.from_json(required) == dataclasses.replace(recipe, unit_clips=128)


OTHER_RUNS: dict[str, object] = {
    "cpus": 2,
    "decode_timeout_s": 5.0,
    "decode_memory_bytes": 1 << 30,
    "confine": "require",
    "item_memory_bytes": 1 << 30,
    "max_rejects": 0.5,
    "retry_rejects": "all",
    "single_writer": True,
    "unlisted_vae": True,
    "progress_timeout_s": 60.0,
    "actors": 3,
    "ray_address": "auto",
    "autotune": True,
    "allow_other_device": True,
}
"""Fields of Run that may differ from one job in this process to the next."""
PLACES = {"output", "vae", "sources", "local", "gpus"}
"""Those that say where: what they change is shown by test_run, test_ray and test_loader."""


def test_no_field_of_a_run_changes_the_bytes_or_is_refused(tmp_path: Path, tiny_card: Card) -> None:
    assert OTHER_RUNS.keys() | PLACES == {field.name for field in dataclasses.fields(Run)}, "a new field is not listed"
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(2,))
    run = Run(output="", vae=str(TINY), sources=(str(tmp_path / "videos"),), local=True, cpus=1)

    def shards(output: Path, changes: dict[str, object]) -> dict[str, str]:
        with painted():
            changed = dataclasses.replace(run, output=str(output), **changes)  # type: ignore[arg-type]
            encode(recipe, changed, tiny_card, say=lambda line: None)
        return {path: sha256 for path, sha256 in tree(output).items() if path.startswith("shards/")}

    before = shards(tmp_path / "out", {})
    for name, value in OTHER_RUNS.items():
        assert shards(tmp_path / name, {name: value}) == before, name
        assert shards(tmp_path / "out", {name: value}) == before, name


def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_buckets_are_written_height_width_frames() -> None:
    assert Bucket.parse("480x848x51") == Bucket(num_frames=51, height=480, width=848)
    assert str(Bucket(num_frames=51, height=480, width=848)) == "480x848x51"
    with pytest.raises(ConfigError, match="'480x848' is not HEIGHTxWIDTHxFRAMES"):
        Bucket.parse("480x848")


def test_buckets_in_groups_are_recorded_with_their_group(recipe: Recipe) -> None:
    buckets = (Bucket(17, 32, 32, "small"), Bucket(17, 32, 56, "small"), Bucket(17, 32, 56, "large"))
    grouped = dataclasses.replace(recipe, buckets=buckets, micro_batch=(4, 2))
    assert grouped.to_json()["buckets"] == ["small=32x32x17", "small=32x56x17", "large=32x56x17"]
    assert Recipe.from_json(grouped.to_json()) == grouped
    assert grouped.bucket_groups == {"small": buckets[:2], "large": buckets[2:]}
    assert grouped.micro_batch == (4, 4, 2), "one number for each group"
    assert (grouped.group_names, recipe.group_names) == (("small", "large"), ())


def test_the_fingerprint_of_a_recipe_without_groups_is_what_it_was() -> None:
    recipe = Recipe(vae="0" * 64, buckets=(Bucket(17, 32, 32), Bucket(17, 32, 56)), micro_batch=(1, 1))
    assert recipe.fingerprint == "c6de1120d9fd"
    grouped = tuple(dataclasses.replace(bucket, group="g") for bucket in recipe.buckets)
    assert dataclasses.replace(recipe, buckets=grouped).fingerprint != recipe.fingerprint


def test_a_bucket_that_the_vae_cannot_encode_is_refused_with_the_nearest(recipe: Recipe, tiny_card: Card) -> None:
    other = dataclasses.replace(recipe, buckets=(Bucket(17, 36, 64),), micro_batch=(1,))
    with pytest.raises(ConfigError, match=r"bucket 36x64x17 .* nearest that fits is 32"):
        other.check_vae(tiny_card)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ()}, "no buckets"),
        ({"micro_batch": (1, 1, 1)}, "each of 2 buckets"),
        ({"micro_batch": (0,)}, "at least 1"),
        ({"buckets": (Bucket(17, 32, 32),) * 2}, "given twice"),
        ({"windows": "stride"}, "go together"),
        ({"fps": -1.0}, "fps must be positive"),
        ({"columns": ("score",)}, "name:type"),
        ({"dtype": "int8"}, "int8 goes with --store mean"),
        ({"scene_threshold": 3.0}, "goes with --scenes"),
        ({"crop_seed": 1, "crop": "top"}, "goes with --crop random"),
        (
            {"buckets": (Bucket(17, 32, 32, "a"), Bucket(17, 32, 56))},
            "either all buckets have a group or none, but 32x56x17",
        ),
        ({"buckets": (Bucket(17, 32, 32, "a"),) * 2}, "given twice: a=32x32x17, a=32x32x17"),
        (
            {
                "buckets": (Bucket(17, 32, 32, "a"), Bucket(17, 32, 56, "b"), Bucket(1, 32, 56, "b")),
                "micro_batch": (1,) * 4,
            },
            "each of 2 groups or of 3 buckets",
        ),
        ({"scenes": "transnet", "decoder": "decord"}, "need --decoder pyav"),
        ({"scenes": "content", "scene_threshold": 0.0}, "must be positive"),
        ({"private_hosts": ("http://media.internal/",)}, "a host's name or address alone"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe: Recipe, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]
