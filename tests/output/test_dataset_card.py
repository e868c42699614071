"""The dataset card: ``datasets`` reads the index through it, jobs update it, and people may take it over."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.edit_dataset import main as edit
from pipeline.bucket import Bucket
from pipeline.output.index import newest_index
from pipeline.output.layout import dataset_card
from pipeline.output.layout.dataset_card import MARK
from pipeline.output.layout.own_files import stray_files
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two videos of different sizes and a file that is no video."""
    make_clip(tmp_path / "videos" / "a.mp4", 20, size=(32, 56), seed=0)
    make_clip(tmp_path / "videos" / "b.mp4", 20, size=(32, 32), seed=1)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    return tmp_path


def run_job(folder: Path, card: Card) -> Any:
    """Encode what is in the folder; the summary."""
    recipe = Recipe(vae=card.sha256, buckets=(Bucket(17, 32, 56), Bucket(17, 32, 32)), micro_batch=(1, 1), unit_clips=2)
    run = Run(
        output=str(folder / "out"),
        vae=str(TINY),
        sources=(f"v={folder / 'videos'}",),
        local=True,
        cpus=1,
        max_rejects=1.0,
    )
    return encode(recipe, run, card, say=lambda line: None)


def card_notes(summary: Any) -> list[str]:
    """What a job's summary says of the card."""
    return [note for note in summary.notes if "README.md" in note or "dataset card" in note]


def loaded(folder: Path, name: str | None = None) -> pa.Table:
    """The rows that ``datasets.load_dataset`` finds in the output, as an Arrow table."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(folder / "out"), name, split="train", cache_dir=str(folder / "cache"))
    return rows.with_format("arrow")[:]


def test_datasets_reads_the_index(folder: Path, tiny_card: Card) -> None:
    run_job(folder, tiny_card)
    index = newest_index(Store(str(folder / "out")))
    assert index is not None and len(index.samples) == 2
    expected = pa.concat_tables([pq.read_table(folder / "out" / path) for path in index.samples])
    samples = loaded(folder)
    assert samples.column_names == expected.column_names and len(samples) == 2
    assert samples.to_pylist() == expected.to_pylist()
    rejects = loaded(folder, "rejects")
    assert rejects["key"].to_pylist() == ["bad.mp4"] and "unknown_format" in str(rejects.to_pylist())


def test_a_job_writes_the_same_card_until_the_output_grows(folder: Path, tiny_card: Card) -> None:
    run_job(folder, tiny_card)
    path = folder / "out" / "README.md"
    first, written_ns = path.read_bytes(), path.stat().st_mtime_ns
    assert card_notes(run_job(folder, tiny_card)) == [] and path.read_bytes() == first
    assert path.stat().st_mtime_ns == written_ns, "a card that is right is not written again"
    make_clip(folder / "videos" / "c.mp4", 20, size=(32, 56), seed=2)
    run_job(folder, tiny_card)
    assert path.read_bytes() != first and len(loaded(folder)) == 3
    assert stray_files(Store(str(folder / "out"))) == []


def test_removed_samples_are_left_out(folder: Path, tiny_card: Card, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(folder, tiny_card)
    output, items = str(folder / "out"), folder / "items"
    items.write_text("a.mp4\nbad.mp4\n")
    assert edit([output, "remove", "--items", str(items), "--reason", "ticket 12"]) == 0
    card = (folder / "out" / "README.md").read_text()
    assert loaded(folder)["key"].to_pylist() == ["b.mp4"] and "samples 1," in card and "Removed since: 1." in card
    assert card_notes(run_job(folder, tiny_card)) == [] and (folder / "out" / "README.md").read_text() == card
    with mock.patch.object(dataset_card, "MAX_REMOVED", 0):
        run_job(folder, tiny_card)
    assert "still has their rows" in (folder / "out" / "README.md").read_text() and len(loaded(folder)) == 2
    (folder / "out" / "README.md").write_text("# Mine")
    capsys.readouterr()
    assert edit([output, "undo", "last"]) == 0
    assert "README.md was not updated" in capsys.readouterr().out


def test_a_card_that_someone_edited_stays(folder: Path, tiny_card: Card) -> None:
    run_job(folder, tiny_card)
    path = folder / "out" / "README.md"
    edited = path.read_text().replace(f"{MARK}\n", "license: cc-by-4.0\n").replace("# Video latents", "# My latents")
    path.write_text(edited)
    summary = run_job(folder, tiny_card)
    assert path.read_text() == edited and len(loaded(folder)) == 2
    (note,) = card_notes(summary)
    assert note.startswith("README.md was not updated, because it lacks the line '# Latentmill")


def test_an_output_without_samples_has_a_card_too(folder: Path, tiny_card: Card) -> None:
    for path in (folder / "videos").glob("[ab].mp4"):
        path.unlink()
    run_job(folder, tiny_card)
    assert loaded(folder, "rejects")["key"].to_pylist() == ["bad.mp4"]


def test_a_folder_in_the_place_of_the_card_ends_no_job(folder: Path, tiny_card: Card) -> None:
    run_job(folder, tiny_card)
    path = folder / "out" / "README.md"
    path.unlink()
    path.mkdir()
    (note,) = card_notes(run_job(folder, tiny_card))
    assert note.startswith(("the dataset card was not written: ", "README.md was not updated"))
