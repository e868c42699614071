"""Compares today's output with one of format version 1 made from the same inputs; checks that such an output is refused.

``version_1/inputs`` holds a tar, a folder and a manifest, each with a broken or missing item. The last program that wrote
format version 1 made ``version_1/output.tar.xz`` of them, at ``/data/version_1``, with the settings in ``SETTINGS``.
``version_1/processor.txt`` names the processor that it ran on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import encode_dataset, report, verify_dataset
from pipeline.environment import is_same_environment
from pipeline.errors import LatentmillError
from pipeline.loader import LatentDataset
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT

VERSION_1 = ROOT / "tests" / "project" / "version_1"
MADE_AT = "/data/version_1"
MODIFIED_S = 1_700_000_000
"""Time of modification of every input, which becomes its entity tag."""

SETTINGS = """
    --buckets 32x32x17,32x56x34,32x56x1 --micro-batch 2 --fps 20 --windows all --remainder shorten
    --conditioning first-last --column score:float --unit-clips 2 --cpus 1 --max-rejects 1 --local
""".split()

RENAMED = {
    "codec": "src_codec",
    "kind": "store",
    "reject_kind": "reject_reason",
    "normalisation": "normalization",
}
"""Columns and fields of ID.json that have another name today."""

RENAMED_IN_CARD = {"most": "largest"}
"""Fields of the VAE's card that have another name today."""

ADDED = {
    "mirrored",
    "container_crop",
    "interlaced",
    "dolby_vision",
    "captions",
    "note",
    "range_start_s",
    "range_end_s",
    "scene",
    "scene_start_s",
    "scene_end_s",
    "group",
}
"""Columns that version 1 did not have."""

MAY_DIFFER = {"recipe", "shard", "reject_message"} | {
    f"{member}{column}" for member in ("", "first_", "last_") for column in ("offset", "tensor_offset")
}
"""The fingerprint of the recipe; the place of a member, since the JSON before it is longer; the wording of messages."""

FROM_TENSORS = {"crc32c", "first_crc32c", "last_crc32c", "latent_mean", "latent_std", "latent_absmax"}
"""Columns computed from tensors, whose last bits another processor or another version of PyTorch may change."""

MEMBERS = {"latent": "", "first": "first_", "last": "last_"}
"""Members of a sample and the prefixes of their columns."""

Row = dict[str, Any]


def processor() -> str:
    """What selects the machine code of PyTorch: the processor's model and a hash of its features."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = hashlib.sha256(" ".join(sorted(facts.get("flags", "").split())).encode()).hexdigest()[:16]
    return " / ".join([*(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model")), features])


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of format version 1."""
    folder = tmp_path_factory.mktemp("version_1")
    with tarfile.open(VERSION_1 / "output.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, with the times of modification that they had."""
    folder = tmp_path_factory.mktemp("data") / "version_1" / "inputs"
    shutil.copytree(VERSION_1 / "inputs", folder)
    for path in folder.rglob("*"):
        os.utime(path, (MODIFIED_S, MODIFIED_S))
    return folder


def command(inputs: Path, output: Path) -> list[str]:
    """The arguments of the job that made the output of version 1, under today's names."""
    sources = {"tar": "videos.tar", "folder": "folder", "rows": "manifest.jsonl"}
    named = [word for name, path in sources.items() for word in ("--source", f"{name}={inputs / path}")]
    return [*named, "--output", str(output), "--vae", str(TINY), *SETTINGS]


@pytest.fixture(scope="module")
def new(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Today's output of the same inputs and settings."""
    output = tmp_path_factory.mktemp("today") / "output"
    assert encode_dataset.main(command(inputs, output)) == 0
    assert_sound(output)
    return output


def rows(output: Path) -> dict[str, Row]:
    """All rows of the unit metadata by the sample's id, with their unit's name as ``unit``."""
    found = {}
    for path in sorted((output / "metadata").glob("*.parquet")):
        found |= {row["id"]: row | {"unit": path.name.partition(".")[0]} for row in pq.read_table(path).to_pylist()}
    return found


def under_todays_names(row: Row) -> Row:
    """A row or JSON member of version 1 with the names of today's columns."""
    return {RENAMED.get(name, name): value for name, value in row.items()}


def card_under_todays_names(value: Any) -> Any:
    """A value of version 1's card with the names of today's fields, at any depth."""
    if isinstance(value, dict):
        return {RENAMED_IN_CARD.get(name, name): card_under_todays_names(inner) for name, inner in value.items()}
    return value


def tensor(output: Path, row: Row, prefix: str) -> bytes:
    """The bytes of one member's tensor."""
    with (output / row["shard"]).open("rb") as shard:
        shard.seek(row[f"{prefix}tensor_offset"])
        return shard.read(row[f"{prefix}tensor_nbytes"])


def sample_json(output: Path, row: Row) -> Row:
    """The JSON member of a sample."""
    with tarfile.open(output / row["shard"]) as shard:
        member = shard.extractfile(f"{row['id']}.json")
        assert member is not None
        values: Row = json.load(member)
    return values


def assert_equal_values(old_row: Row, new_row: Row, folder: Path, exact: bool) -> None:
    """Every value is equal, except for those that may differ; ``folder`` stands in for ``MADE_AT``."""
    for name in old_row.keys() - MAY_DIFFER:
        expected = old_row[name]
        if name == "uri":
            expected = expected.replace(MADE_AT, str(folder))
        if exact or name not in FROM_TENSORS:
            assert new_row[name] == expected, name
        elif "crc32c" not in name and expected is not None:
            assert np.isclose(new_row[name], expected, rtol=0, atol=1e-3), name
    for name in MAY_DIFFER & old_row.keys():
        assert (new_row[name] is None) == (old_row[name] is None), name


def test_rows_and_tensors_equal_those_of_version_1(old: Path, new: Path, inputs: Path) -> None:
    """Tensors are the same bytes where processor and packages are those of version 1, else they differ by at most 1e-3."""
    old_rows, new_rows = ({id_: under_todays_names(row) for id_, row in rows(out).items()} for out in (old, new))
    environments = [json.loads((output / "dataset.json").read_text())["environment"] for output in (old, new)]
    exact = is_same_environment(*environments) and processor() == (VERSION_1 / "processor.txt").read_text().strip()
    assert new_rows.keys() == old_rows.keys() and len(old_rows) == 13
    for id_, old_row in old_rows.items():
        new_row = new_rows[id_]
        assert new_row.keys() == old_row.keys() | ADDED
        assert_equal_values(old_row, new_row, inputs.parent, exact)
        if not old_row["shard"]:
            continue
        old_json, new_json = under_todays_names(sample_json(old, old_row)), sample_json(new, new_row)
        assert new_json.keys() == old_json.keys() | (ADDED & new_json.keys())
        assert_equal_values(old_json, new_json, inputs.parent, exact)
        for prefix in MEMBERS.values():
            before, today = tensor(old, old_row, prefix), tensor(new, new_row, prefix)
            assert not exact or today == before, (id_, prefix)
            assert np.allclose(np.frombuffer(today, np.float16), np.frombuffer(before, np.float16), rtol=0, atol=1e-3)
    assert sum(row["shard"] is not None for row in old_rows.values()) == 6


def test_the_plan_and_the_vae_equal_those_of_version_1(old: Path, new: Path) -> None:
    names = [[unit["name"] for unit in pq.read_table(output / "plan").to_pylist()] for output in (old, new)]
    assert names[0] == names[1] and len(names[0]) == 5
    before, today = (json.loads((output / "dataset.json").read_text()) for output in (old, new))
    assert today["recipe"]["vae"] == before["recipe"]["codec"]
    for name in ("sha256", "shift", "scale", "geometry", "class_name", "latent_channels"):
        assert today["vae"][name] == card_under_todays_names(before["codec"][name])


def load(output: Path, inputs: Path) -> int:
    """Open an output with the loader, as a training script does."""
    try:
        LatentDataset(str(output))
    except LatentmillError as error:
        print(f"error: {error}")
        return error.exit_code
    return 0


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(load, id="loader"),
        pytest.param(lambda output, inputs: verify_dataset.main([str(output)]), id="verify"),
        pytest.param(lambda output, inputs: report.main([str(output)]), id="report"),
        pytest.param(lambda output, inputs: encode_dataset.main(command(inputs, output)), id="encode"),
    ],
)
def test_an_output_of_version_1_is_refused_with_a_sentence(
    use: Callable[[Path, Path], int], old: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}

    before = contents()
    assert use(old, inputs) in (1, 2)
    said = capsys.readouterr()
    (sentence,) = (said.out + said.err).splitlines()
    assert "version 1" in sentence and sentence.startswith("error: ") and str(old) in sentence
    assert contents() == before
