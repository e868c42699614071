"""What ``dataset.json`` and the folders of an output must be for this program to open it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.report import main as report
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset
from pipeline.output.dataset import check_recipe, open_dataset, read_dataset
from pipeline.output.index import Index, newest_index
from pipeline.output.index_builder import build_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.unit_metadata import newest_unit_metadata, unit_metadata_paths
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.units import Plan, Unit
from pipeline.storage.store import Store
from stvae import Card
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("dataset") / "out", [Bucket(17, 32, 32)] * 4)


@pytest.fixture
def output(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "out")
    return tmp_path / "out"


def change(output: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((output / "dataset.json").read_text())
    edit(values)
    (output / "dataset.json").write_text(json.dumps(values))


def test_every_reader_and_writer_refuses_a_version_1_output_with_a_sentence(
    output: Path, tiny_card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_dataset(Store(str(output))).recipe
    (output / "dataset.json").write_text(json.dumps({"format_version": 1, "recipe": {}, "codec": {}}))
    what = r"dataset\.json has format version 1, but .* version 2 only: encode the sources again into a new output"
    with pytest.raises(IntegrityError, match=what):
        LatentDataset(str(output))
    (output / "videos" / "a.mp4").parent.mkdir()
    (output / "videos" / "a.mp4").write_text("never read")
    run = Run(output=str(output), vae=str(TINY), sources=(str(output / "videos"),), local=True)
    with pytest.raises(IntegrityError, match=what):
        encode(recipe, run, tiny_card, say=lambda line: None)
    for command in (verify, report):
        assert command([str(output)]) == 1
        assert "format version 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(format_version=3), "format version 3.* use the newer Latentmill"),
        (lambda v: v.update(text={}), "does not know: text; use the newer"),
        (lambda v: v["recipe"].update(audio=True, zoom=1), "recipe has fields .* does not know: audio, zoom"),
        (lambda v: v["recipe"].update(resize="lanczos"), "resize 'lanczos', which this program does not know"),
        (lambda v: v["vae"].update(audio=True), "card has fields .* does not know: audio"),
        (lambda v: v["vae"]["geometry"].update(overlap=1), "card has fields .* does not know: overlap"),
        (lambda v: v["vae"]["geometry"]["frames"].update(least=1), "card has fields .* does not know: least"),
        (lambda v: v["recipe"].pop("vae"), "the recipe lacks vae"),
        (lambda v: v["recipe"].update(buckets=[5]), "is damaged"),
        (lambda v: v["vae"].pop("shift"), "is damaged"),
        (lambda v: v.pop("vae"), "is damaged .it lacks vae"),
        (lambda v: v.pop("format_version"), "is damaged .it has no format_version"),
        (lambda v: v.update(recipe=None), "is damaged"),
    ],
)
def test_what_this_program_does_not_know_is_refused_by_name(
    output: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(output, edit)
    with pytest.raises(IntegrityError, match=message):
        LatentDataset(str(output))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_refused_with_its_name(output: Path, content: bytes) -> None:
    (output / "dataset.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"/dataset\.json is damaged .* restore it"):
        read_dataset(Store(str(output)))


def test_a_recipe_that_lacks_a_later_field_has_its_default(output: Path) -> None:
    recipe = read_dataset(Store(str(output))).recipe
    change(output, lambda values: values["recipe"].pop("resize"))
    assert check_recipe(Store(str(output)), recipe).recipe == recipe


def test_opening_compares_every_field(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_dataset(Store(str(output))).recipe
    monkeypatch.setattr(Recipe, "fingerprint", "the same")
    change(output, lambda values: values["recipe"].update(max_repeats=0.5))
    with pytest.raises(ConfigError, match=r"max_repeats: 0\.5 -> 0\.25"):
        check_recipe(Store(str(output)), recipe)


def test_an_output_with_edits_of_a_later_version_is_refused_by_name(
    output: Path, tiny_card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(output))
    recipe = read_dataset(store).recipe
    store.put_new("edits/0000.later", b"{}")
    for reader in (lambda: LatentDataset(str(output)), lambda: open_dataset(store, recipe, tiny_card, dict)):
        with pytest.raises(IntegrityError, match=r"has edits/0000\.later, which this program does not understand"):
            reader()
    for command in (verify, report):
        assert command([str(output)]) == 1
        assert "has edits/" in capsys.readouterr().out


def test_edits_of_a_later_version_are_found_on_s3_too(s3: str, output: Path) -> None:
    store = Store(f"{s3}/out")
    store.put_new("dataset.json", (output / "dataset.json").read_bytes())
    read_dataset(store)
    store.put_new("edits/0000.later", b"")
    with pytest.raises(IntegrityError, match=r"has edits/0000\.later"):
        read_dataset(store)


@pytest.mark.parametrize("status", [403, 404, 405])
def test_a_web_server_that_lists_nothing_is_read_all_the_same(output: Path, status: int) -> None:
    def answer(path: str) -> Reply:
        found = output / path.lstrip("/")
        return Reply(found.read_bytes()) if found.is_file() else Reply(status=status)

    with serving(answer) as server:
        assert read_dataset(Store(server.url)).recipe.dtype == "float16"


def test_the_highest_revision_of_unit_metadata_counts(output: Path) -> None:
    store = Store(str(output))
    (first,) = newest_unit_metadata(store).items()
    for revision in (2, 10):
        store.put_new(f"metadata/{first[0]}.{revision}.parquet", store.get(first[1]))
    store.put_new("metadata/notes.txt", b"not ours")
    assert newest_unit_metadata(store) == {first[0]: f"metadata/{first[0]}.10.parquet"}
    units = [unit(first[0]), unit("not-listed")]
    assert unit_metadata_paths(store, units)[1] == "metadata/not-listed.0.parquet"
    shutil.rmtree(output / "index")
    (output / first[1]).unlink()
    assert len(LatentDataset(str(output))) == 4


def unit(name: str, generation: int = 0) -> Unit:
    return Unit(name=name, source="numbers", format="manifest", generation=generation, start=0, stop=None)


def index_of(output: Path, plan_generations: int) -> Index:
    """Build the index of a plan that has gained generations without units."""
    store = Store(str(output))
    (name,) = newest_unit_metadata(store)
    (columns,) = [LatentDataset(str(output)).samples.table.select(["meta_score"]).schema]
    plan = Plan(units=[unit(name)], columns=[columns] * plan_generations)
    return build_index(store, plan, clip_rows(plan, read_dataset(store).recipe))


def test_indexes_are_numbered_on_their_own_and_say_what_they_cover(output: Path) -> None:
    first = index_of(output, 1)
    assert (first.generation, first.path, first.plan_generations) == (0, "index/0000.json", 1)
    assert index_of(output, 1) == first, "an index that covers as much is not made again"
    third = index_of(output, 4)
    assert (third.generation, third.plan_generations) == (1, 4) and third.samples == first.samples
    assert newest_index(Store(str(output))) == third
    assert index_of(output, 2) == third, "a job with an older plan uses the index that covers more"
    assert len(list((output / "index").glob("*.json"))) == 2


def test_a_listing_that_lags_behind_does_not_make_an_index_twice(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = index_of(output, 3)
    listed = Store.list_files

    def stale(store: Store, folder: str) -> dict[str, int]:
        return {} if folder == "index" else listed(store, folder)

    monkeypatch.setattr(Store, "list_files", stale)
    assert index_of(output, 3) == newest and index_of(output, 2) == newest
    assert index_of(output, 5).generation == 2


def test_the_tenth_thousandth_index_is_newer_than_the_one_before(output: Path) -> None:
    index = newest_index(Store(str(output)))
    assert index is not None
    content = json.loads(index.to_json())
    for generation in (9999, 10000):
        (output / "index" / f"{generation}.json").write_text(json.dumps(content | {"generation": generation}))
    newest = newest_index(Store(str(output)))
    assert newest is not None and newest.generation == 10000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1"),
        ({"edits": 3}, "does not know: edits"),
        ({"totals": {"num_dogs": 1}}, "is damaged"),
    ],
)
def test_an_index_that_cannot_be_understood_is_refused_by_name(
    output: Path, changes: dict[str, Any], message: str
) -> None:
    path = output / "index" / "0000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(IntegrityError, match=rf"index/0000\.json.*{message}"):
        LatentDataset(str(output))
    assert verify([str(output)]) == 1
    problems = json.loads((output / "verify.json").read_text())["problems"]
    assert any(message in what for _, what in problems)


def test_what_the_loader_imports_needs_neither_sources_nor_video() -> None:
    code = "import sys, pipeline.loader; print([m for m in sys.modules if m.startswith(('pipeline.sources', 'pipeline.v'))])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
