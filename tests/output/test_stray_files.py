"""Files of other programs in an output are passed over by everything that reads it, stay, and are named by verify."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.export_dataset import main as export
from jobs.verify_dataset import main as verify_main
from pipeline.bucket import Bucket
from pipeline.encode.attempts import list_attempts
from pipeline.errors import IntegrityError
from pipeline.loader import LatentDataset
from pipeline.output.layout.own_files import FOLDERS, stray_files
from pipeline.output.plan import read_plan
from pipeline.output.reject_retries import plan_retries
from pipeline.recipe import Recipe, Run
from pipeline.report.history import read_history
from pipeline.report.page import write_page
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.latent_set import write_latents

NAMES = (
    ".DS_Store",
    ".nfs0000000000abcdef",
    "notes.json",
    "Thumbs.db",
    "._0000.json",
    "a b-(1).parquet",
    "x.0.parquet.bak",
)
"""Names of strays; ``x`` stands for a name of ours with something added."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that was run once, and can be run again."""

    folder: Path
    recipe: Recipe
    card: Card

    def encode(self, output: Path) -> Any:
        run = Run(
            output=str(output),
            vae=str(TINY),
            sources=(f"v={self.folder / 'videos'}",),
            local=True,
            cpus=1,
            max_rejects=1.0,
        )
        return encode(self.recipe, run, self.card, say=lambda line: None)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_card: Card) -> Job:
    folder = tmp_path_factory.mktemp("strays")
    for seed in range(2):
        make_clip(folder / "videos" / f"{seed}.mp4", 20, size=(32, 56), seed=seed)
    (folder / "videos" / "bad.mp4").write_text("not a video")
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, 32, 56),), micro_batch=(1,), unit_clips=2)
    return Job(folder, recipe, tiny_card)


@pytest.fixture(scope="module")
def finished(job: Job) -> Path:
    job.encode(job.folder / "out")
    return job.folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def add_strays(output: Path) -> set[str]:
    """Put strays into every folder that there may be; their paths as verify names them."""
    units = [path.name.partition(".")[0] for path in (output / "metadata").glob("*.parquet")]
    folders = ["", *FOLDERS, *(f"attempts/{unit}" for unit in units)]
    folders += [str(path.relative_to(output)) for path in (output / "index").iterdir() if path.is_dir()]
    expected = set()
    for folder in folders:
        (output / folder).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            if f"{folder}/{name}" == "tags/notes.json":
                continue  # a tag may have this name
            (output / folder / name).write_bytes(b"\0\xff not ours {")
            expected.add(f"{folder}/{name}".lstrip("/"))
        (output / folder / "New Folder").mkdir()
        (output / folder / "New Folder" / "x").write_bytes(b"")
        expected |= {f"{folder}/New Folder".lstrip("/") + "/", f"{folder}/New Folder/x".lstrip("/")}
    for name in (
        f"metadata/._{units[0]}.0.parquet",
        f"shards/._{units[0]}-00000000.tar",
        f"attempts/{units[0]}/a-0.json~",
    ):
        (output / name).write_bytes(b"\0\5\x16\7")
        expected.add(name)
    return {name for name in expected if not name.startswith("previews/")} - {"New Folder/x", "New Folder/"} | {
        "New Folder"
    }


def test_strays_are_passed_over_stay_and_are_named(job: Job, output: Path, capsys: Any) -> None:
    first = json.loads((output / "summary.json").read_text())
    ours = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    strays = add_strays(output)
    ours_and_strays = {path for path in output.rglob("*") if path.is_file()}
    store = Store(str(output))

    again = job.encode(output)
    assert (again.units_done_now, again.exit_code, again.notes) == (0, 0, first["notes"])
    assert again.counts.to_json().items() <= first.items(), "a stray was counted"
    assert list_attempts(store) == {}
    history = read_history(store)
    assert len(history) == 1
    assert plan_retries(store, read_plan(store), "none_such", lambda line: None).units == read_plan(store).units
    write_page(store)
    data = LatentDataset(str(output))
    assert len(data) == 2 and sum(len(batch["id"]) for batch in data.batches(1)) == 2
    assert ours_and_strays <= set(output.rglob("*")), "a file of another program was removed"
    for path, content in ours.items():
        if path.name not in ("summary.json", "report.html"):
            assert path.read_bytes() == content

    assert set(stray_files(store)) == strays
    assert verify_main([str(output)]) == 0
    printed = capsys.readouterr().out
    assert "no problems" in printed and "not written by Latentmill, and passed over: '.DS_Store'" in printed
    assert set(json.loads((output / "verify.json").read_text())["strays"]) == strays


def test_strays_do_not_keep_a_job_from_units_that_are_left(job: Job, finished: Path, output: Path) -> None:
    whole = finished
    shutil.rmtree(output / "index")
    (output / "index").mkdir()
    for path in [*(output / "metadata").iterdir(), *(output / "shards").iterdir()]:
        path.unlink()
    unit = next((whole / "metadata").iterdir()).name.partition(".")[0]
    (output / "attempts" / unit).mkdir(parents=True)
    for folder in (*FOLDERS, f"attempts/{unit}"):
        for name in NAMES:
            if f"{folder}/{name}" == "tags/notes.json":
                continue  # a tag may have this name
            (output / folder).mkdir(exist_ok=True)
            (output / folder / name).write_bytes(b"{")
    summary = job.encode(output)
    assert summary.units_done_now == 2 and summary.exit_code == 0
    for folder in ("shards", "metadata"):
        ours = {path.name: path.read_bytes() for path in (whole / folder).iterdir()}
        assert ours == {p.name: p.read_bytes() for p in (output / folder).iterdir() if p.name not in NAMES}


def test_strays_do_not_keep_readers_from_an_unfinished_output(tmp_path: Path) -> None:
    write_latents(tmp_path / "out", [Bucket(17, 32, 32)] * 4, samples_per_shard=2, index=False)
    for folder in ("metadata", "index", "shards"):
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
        for name in (*NAMES, "._unit-0.0.parquet"):
            (tmp_path / "out" / folder / name).write_bytes(b"{")
    assert len(LatentDataset(str(tmp_path / "out"))) == 4


def rename_shards(path: Path, change: Callable[[str], str]) -> None:
    table = pq.read_table(path)
    shards = pa.array([change(shard) if shard else None for shard in table["shard"].to_pylist()], pa.string())
    table = table.set_column(table.column_names.index("shard"), "shard", shards)
    facts = dict(table.schema.metadata or {})
    if b"shard" in facts:
        facts[b"shard"] = change(facts[b"shard"].decode()).encode()
    pq.write_table(table.replace_schema_metadata(facts), path)


OUTSIDE = ("../secret-00000000.tar", "/etc/hostname", "shards/../../secret-00000000.tar", "https://host/x-00000000.tar")


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("cached", [False, True])
def test_a_shard_outside_of_the_output_is_not_read(outside: str, cached: bool, tmp_path: Path) -> None:
    output = write_latents(tmp_path / "out", [Bucket(17, 32, 32)] * 4)
    shutil.copyfile(next((output / "shards").iterdir()), tmp_path / "secret-00000000.tar")
    for path in (output / "index").glob("*/samples-*.parquet"):
        rename_shards(path, lambda shard: outside)
    with pytest.raises(IntegrityError, match="leads out of the output"):
        LatentDataset(str(output), cache=tmp_path / "cache" if cached else None)
    assert not list(tmp_path.glob("export/**/*"))


def test_an_export_writes_no_unit_outside_of_its_folder(tmp_path: Path, capsys: Any) -> None:
    output = write_latents(tmp_path / "out", [Bucket(17, 32, 32)] * 4)
    shard = next((output / "shards").iterdir())
    (output / "shards" / "deep").mkdir()
    shard.rename(output / "shards" / "deep" / "x-00000000.tar")
    for path in (output / "index").glob("*/samples-*.parquet"):
        rename_shards(path, lambda shard: "shards/deep/x-00000000.tar")
    assert export([str(output), "--to", "parquet", "--local", "--output", str(tmp_path / "export")]) == 1
    assert "'deep/x' is not the name of a unit" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["samples", "rejects", "shards"])
@pytest.mark.parametrize("outside", ["../secret.parquet", "/etc/hostname", "file:///etc/hostname"])
def test_paths_of_an_index_that_lead_out_are_refused(field: str, outside: str, output: Path) -> None:
    path = output / "index" / "0000.json"
    values = json.loads(path.read_text())
    values[field] = outside if field == "shards" else [outside]
    path.write_text(json.dumps(values))
    if field == "samples":
        with pytest.raises(IntegrityError, match="leads out of the output"):
            LatentDataset(str(output))
    if field != "shards":
        with pytest.raises(IntegrityError, match="leads out of the output"):
            write_page(Store(str(output)))
    assert verify_main([str(output)]) == 1
    problems = json.loads((output / "verify.json").read_text())["problems"]
    assert field == "shards" or any("leads out of the output" in what for _, what in problems)


@pytest.mark.parametrize(("field", "value"), [("samples", [1]), ("skips", None), ("shards", ["a"])])
def test_an_index_whose_paths_are_not_text_is_damaged(field: str, value: Any, output: Path) -> None:
    path = output / "index" / "0000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(IntegrityError, match=r"index/0000\.json is damaged"):
        LatentDataset(str(output))


def test_verify_names_a_shard_outside_of_the_output(output: Path) -> None:
    path = max((output / "metadata").iterdir(), key=lambda path: path.stat().st_size)
    rename_shards(path, lambda shard: "../secret-00000000.tar")
    assert verify_main([str(output)]) == 1
    problems = json.loads((output / "verify.json").read_text())["problems"]
    assert any("leads out of the output: '../secret-00000000.tar'" in what for _, what in problems)
