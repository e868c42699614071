"""Captions are accounted for: in rows, summary, progress line, report, dry run and loader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import estimate
from pipeline.dry_run.table import format_estimate
from pipeline.loader import LatentDataset
from pipeline.progress.captions import metadata_hints
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.clips_maker import make_image
from tests.support.oracle import assert_sound

SIDECARS = {
    "0.txt": "a text",
    "1.json": json.dumps({"caption": ["one", "two"], "score": float("nan")}),
    "2.json": json.dumps({"title": "Some long title", "caption": {"short": "a", "long": "a b"}}),
    "3.txt": "",
}


@pytest.fixture
def still_recipe(recipe: Recipe) -> Recipe:
    """A recipe for pictures, the fastest items."""
    return dataclasses.replace(recipe, buckets=(Bucket(1, 32, 32),), micro_batch=(1,))


@pytest.fixture
def lines() -> list[str]:
    """The lines that the job says."""
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Four pictures."""
    for number in range(4):
        make_image(tmp_path / "in" / f"{number}.png", number, size=(32, 32))
    return tmp_path / "in"


def encoded(folder: Path, recipe: Recipe, run: Run, card: Card, lines: list[str]) -> tuple[Summary, str]:
    """The summary of a job, and the table of the dry run before it."""
    run = dataclasses.replace(run, sources=(str(folder),))
    dry = format_estimate(estimate(recipe, run, card, None, lambda _: None), None, "")
    return encode(recipe, run, card, lines.append), " ".join(dry.split())


def test_captions_are_counted_everywhere(
    folder: Path, still_recipe: Recipe, run: Run, tiny_card: Card, lines: list[str]
) -> None:
    for name, text in SIDECARS.items():
        (folder / name).write_text(text)
    summary, dry = encoded(folder, still_recipe, run, tiny_card, lines)
    note = "numbers in JSON or in a manifest that are NaN, infinite or too large became null (1 sample)"
    assert summary.counts.captions == 2 and "  captions 2 of 4\n" in str(summary) and summary.notes == [note]
    assert json.loads((Path(run.output) / "summary.json").read_text())["captions"] == 2
    assert any("captions 2 of 4" in line for line in lines)
    assert "captions 2 of 4" in dry and f"note {note}" in dry
    page = (Path(run.output) / "report.html").read_text()
    assert '<dt>Captions</dt><dd class="number">2</dd><dd class="soft small">of 4 clips</dd>' in page and note in page
    rows = {row["key"]: row for row in assert_sound(Path(run.output))}
    assert [rows[f"{n}.png"]["caption"] for n in range(4)] == ["a text", "one", None, ""]
    assert [rows[f"{n}.png"]["captions"] for n in range(4)] == [None, ["one", "two"], None, None]
    assert [rows[f"{n}.png"]["note"] for n in range(4)] == [None, "nan_to_null", None, None]
    assert not any("{'" in row["caption"] for row in rows.values() if row["caption"])


def test_the_loader_takes_one_of_a_list_per_epoch(
    folder: Path, still_recipe: Recipe, run: Run, tiny_card: Card, lines: list[str]
) -> None:
    for name, text in SIDECARS.items():
        (folder / name).write_text(text)
    encoded(folder, still_recipe, run, tiny_card, lines)
    data = LatentDataset(run.output)
    assert {k: c for b in data.batches(1) for k, c in zip(b["key"], b["caption"], strict=True)}["1.png"] == "one"
    batches = data.batches(4, captions={"captions": 1.0})
    epochs = [dict(zip(b["key"], b["caption"], strict=True)) for _ in range(12) for b in batches]
    assert {epoch["1.png"] for epoch in epochs} == {"one", "two"}
    assert {epoch["0.png"] for epoch in epochs} == {"a text"} and {epoch["2.png"] for epoch in epochs} == {None}


def test_a_job_without_captions_says_what_lies_beside(
    folder: Path, still_recipe: Recipe, run: Run, tiny_card: Card, lines: list[str]
) -> None:
    (folder / "labels").mkdir()
    for number in range(4):
        (folder / "labels" / f"{number}.txt").write_text("a caption")
    (folder / "2.json").write_text(SIDECARS["2.json"])
    summary, dry = encoded(folder, still_recipe, run, tiny_card, lines)
    (note,) = summary.notes
    assert "  captions 0 of 4\n" in str(summary) and f"  note     {note}" in str(summary)
    assert note.startswith(
        "no sample has a caption: the JSON beside the items has text in title, caption; a caption is a text"
    )
    assert f"'file://{folder}/labels/' holds as many text files as there are videos" in note
    assert f"note {note}" in dry
    assert "No clip has a caption." in (Path(run.output) / "report.html").read_text()


def test_columns_that_hold_text_are_named() -> None:
    rows = [{"meta_title": "two words", "meta_tag": "word", "meta_n": 1, "meta": None}, {"meta_about": ["a b"]}]
    (hint,) = metadata_hints(rows)
    assert "(title, about)" in hint and "--caption-column" in hint
    assert metadata_hints([{"meta_n": 1.5}]) == []
    (hint,) = metadata_hints([{"meta": json.dumps({f"field {n}": "some words" for n in range(9)})}])
    assert "field 5 and 3 more" in hint
