"""Purges: what was removed leaves every file of the output, the rest stays as it was, and readers notice nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.edit_dataset import main as edit
from jobs.export_dataset import main as export
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.errors import IntegrityError, Purged
from pipeline.loader import LatentDataset
from pipeline.report.page import write_page
from pipeline.report.pictures import Picture, read_pictures, write_pictures
from pipeline.storage.parquet import parquet_metadata, read_parquet
from pipeline.storage.store import Store
from tests.support import captioned_set
from tests.support.captioned_set import BUCKET, VIDEO_BUCKET, Captions, add_unit, finish
from tests.support.searcher import find_traces

PURGED = (2, 3, 8)
WHERE = "meta_score in [2, 3, 8]"


def captions(numbers: range, bucket: Bucket = BUCKET) -> list[Captions]:
    return [Captions(f"caption of {n}.", long=f"long caption of {n}.", score=float(n), bucket=bucket) for n in numbers]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    add_unit(folder, captions(range(6)))
    add_unit(folder, captions(range(6, 10), VIDEO_BUCKET))
    finish(folder)
    return folder


def remove(output: Path, where: str = WHERE) -> None:
    assert edit([str(output), "remove", "--where", where, "--reason", "ticket 12"]) == 0


def purge(output: Path, *arguments: str) -> int:
    return edit([str(output), "purge", "--local", *arguments])


def contents_of(output: Path, numbers: Collection[int] = PURGED) -> tuple[list[bytes], list[str]]:
    """Tensors, and captions and URIs, of some samples."""
    tensors, texts = [], []
    for row in LatentDataset(output).columns.to_pylist():
        if row["meta_score"] in numbers:
            data = (output / row["shard"]).read_bytes()
            tensors.append(data[row["tensor_offset"] :][: row["tensor_nbytes"]])
            texts += [row["caption"], row["meta_long_caption"], row["uri"]]
    return tensors, texts


def newest_rows(output: Path) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    """Facts and rows of the newest metadata of each unit."""
    newest = {path.name.split(".")[0]: path for path in sorted((output / "metadata").iterdir())}
    for path in newest.values():
        content = path.read_bytes()
        yield parquet_metadata(content), read_parquet(content).to_pylist()


def batches(output: Path, **options: Any) -> list[dict[str, Any]]:
    return list(LatentDataset(output, **options).batches(2))  # type: ignore[arg-type]


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [batch["id"] for batch in one] == [batch["id"] for batch in other]
    assert [batch["caption"] for batch in one] == [batch["caption"] for batch in other]
    assert all(bool((a["latents"] == b["latents"]).all()) for a, b in zip(one, other, strict=True))


def test_what_was_removed_is_in_no_file_and_readers_see_the_same_as_before(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, texts = contents_of(output)
    assert len(find_traces(output, tensors, texts)) > 6, "the searcher finds what is there"
    remove(output)
    before, position = batches(output), LatentDataset(output).batches(2)
    next(iter(position))
    state = position.state_dict()
    capsys.readouterr()
    assert purge(output) == 0
    shown = capsys.readouterr().out
    assert "deleted 3 samples of 2 units" in shown and "purges/0000.proof.json" in shown
    assert find_traces(output, tensors, texts) == []
    assert_same(batches(output), before)
    resumed = LatentDataset(output).batches(2)
    resumed.load_state_dict(state)
    assert_same(list(resumed), before[1:])  # type: ignore[arg-type]
    with pytest.raises(Purged, match=r"index/0000.json was removed by purge 0"):
        LatentDataset(output, version=state["dataset_version"])
    assert verify([str(output)]) == 0
    assert purge(output) == 0
    assert "nothing to purge" in capsys.readouterr().out
    assert edit([str(output), "log"]) == 0
    log = capsys.readouterr().out
    assert "removed by purge 0" in log and "edits 0: 3 samples in 2 units, finished" in log


def test_every_window_keeps_an_outcome_and_a_proof_names_what_was_replaced(output: Path) -> None:
    ids = {row["id"] for _, rows in newest_rows(output) for row in rows}
    old = {path.name: path.read_bytes() for path in (output / "shards").iterdir()}
    remove(output)
    assert purge(output) == 0
    units = list(newest_rows(output))
    rows = [row for _, found in units for row in found]
    assert {row["id"] for row in rows} == ids and len(rows) == 10
    for facts, found in units:
        assert (int(facts["num_samples"]), int(facts["num_rejects"])) == (
            sum(row["shard"] == facts["shard"] for row in found),
            sum(row["reject_reason"] == "removed" for row in found),
        )
    for row in (row for row in rows if row["shard"] is None):
        known = {name for name, value in row.items() if value is not None}
        rejects = {"reject_stage", "reject_reason", "reject_message"}
        assert known == {"id", "source", "ordinal", "key", "window", "recipe", *rejects} and row["key"] == row["id"]
    changes = json.loads((output / "purges" / "0000.changes.json").read_text())
    assert {unit["old"]["shard"] for unit in changes["units"].values()} == {f"shards/{name}" for name in old}
    assert {f"shards/{name}" for name in old} <= set(changes["deleted"])
    proof = json.loads((output / "purges" / "0000.proof.json").read_text())
    assert (proof["samples"], proof["edits"], proof["same_bytes"]) == (3, 0, [])
    assert {path.name for path in (output / "shards").iterdir()}.isdisjoint(old)


def test_nothing_can_be_undone_after_a_purge(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(output)
    assert purge(output) == 0
    assert edit([str(output), "undo", "last"]) == 2
    assert "what generation 0 removed cannot come back: purge 0" in capsys.readouterr().out
    remove(output, "meta_score == 5")
    assert edit([str(output), "undo", "last"]) == 0
    assert len(LatentDataset(output)) == 7


def test_a_tag_that_needs_the_bytes_is_in_the_way(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edit([str(output), "tag", "all"]) == 0
    tensors, texts = contents_of(output)
    remove(output)
    assert edit([str(output), "tag", "without"]) == 0
    pinned = batches(output, version="without")
    capsys.readouterr()
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert purge(output, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "would purge 3 samples and 0 other rows of edits 0 in 2 units" in shown
    assert "the tag all needs 3 samples" in shown and "without" not in shown
    assert purge(output) == 2
    assert "all needs 3 samples" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before and not (output / "purges").exists()
    assert purge(output, "--despite-tags") == 0
    assert find_traces(output, tensors, texts) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(batches(output, version="without"), pinned)
    with pytest.warns(
        UserWarning, match=r"3 of the 10 samples of the tag 'all' are missing: they were purged, last by"
    ):
        assert len(LatentDataset(output, version="all")) == 7
    capsys.readouterr()
    assert edit([str(output), "log"]) == 0
    assert "10 samples, 3 of them purged" in capsys.readouterr().out
    assert verify([str(output)]) == 0


def test_a_run_that_is_pinned_to_a_tag_gets_the_same_batches_while_others_remove_grow_and_purge(output: Path) -> None:
    remove(output, "meta_score == 1")
    assert edit([str(output), "tag", "v1"]) == 0
    expected, running = batches(output, version="v1"), LatentDataset(output, version="v1").batches(2)
    iterator = iter(running)
    got = [next(iterator)]
    state = running.state_dict()
    assert purge(output) == 0
    add_unit(output, captions(range(10, 14)))
    finish(output)
    remove(output, "meta_score > 11")
    assert purge(output) == 0
    assert verify([str(output)]) == 0
    assert_same([*got, *iterator], expected)  # type: ignore[list-item]
    resumed = LatentDataset(output, version="v1").batches(2)
    resumed.load_state_dict(state)
    assert_same(list(resumed), expected[1:])  # type: ignore[arg-type]
    assert sorted(LatentDataset(output).columns["meta_score"].to_pylist()) == [0, *range(2, 12)]


def test_a_reader_whose_shard_is_gone_gets_one_error_that_names_the_purge(output: Path) -> None:
    data = LatentDataset(output)
    remove(output)
    assert purge(output) == 0
    for options in ({}, {"mapped": True}, {"on_damage": "replace"}):
        with pytest.raises(
            Purged, match=r"shards/u\d+-[0-9a-f]{8}.tar was deleted by purge 0 \(20.*open the output again"
        ):
            list(data.batches(2, **options))  # type: ignore[arg-type]
    with pytest.raises(Purged, match="was deleted by purge 0"):
        data.read(LatentDataset(output).samples.rows[:1])


def test_a_unit_of_which_nothing_is_left_has_no_tar(output: Path) -> None:
    remove(output, "meta_score >= 6")
    assert purge(output) == 0
    facts = {found["unit"]: found for found, _ in newest_rows(output)}
    assert "shard" not in facts["u000006"] and facts["u000006"]["num_samples"] == "0"
    assert len(list((output / "shards").iterdir())) == 1 and len(LatentDataset(output)) == 6
    remove(output, "meta_score >= 0")
    assert purge(output) == 0
    assert len(LatentDataset(output)) == 0 and verify([str(output)]) == 0


def test_purges_follow_one_another(output: Path) -> None:
    for numbers in ((0,), (1, 7), (2, 6, 9)):
        remove(output, f"meta_score in {list(numbers)}")
        assert purge(output) == 0
    tensors, _ = contents_of(output, (3, 4, 5, 8))
    assert len(tensors) == len(LatentDataset(output)) == 4 and find_traces(output, tensors[:1], [])
    assert {path.name for path in (output / "metadata").iterdir()} == {
        *(f"u000000.{revision}.parquet" for revision in range(4)),
        *(f"u000006.{revision}.parquet" for revision in range(3)),
    }
    assert verify([str(output)]) == 0


def test_pictures_and_reports_show_nothing_of_purged_samples(output: Path) -> None:
    store = Store(str(output))
    rows = LatentDataset(output).columns.to_pylist()
    facts = {"start_s": 0.0, "end_s": 1.0, "num_frames": 1, "bucket": "16x16x1", "source": "numbers"}
    write_pictures(
        store,
        [Picture(id=row["id"], key=row["key"], caption=row["caption"], **facts) for row in rows],  # type: ignore[arg-type]
    )
    store.put("previews/preview.png", b"several samples")
    write_page(store)
    assert "caption of 2." in (output / "report.html").read_text()
    remove(output)
    assert purge(output) == 0
    assert len(read_pictures(store)) == 7 and not (output / "previews" / "preview.png").exists()
    assert find_traces(output, [], [text for n in PURGED for text in (f"caption of {n}.", f"{n}.png")]) == []
    assert "caption of 1." in (output / "report.html").read_text()


def test_an_output_without_an_index_is_purged_too(tmp_path: Path) -> None:
    output = tmp_path / "growing"
    add_unit(output, captions(range(6)))
    tensors, texts = contents_of(output)
    remove(output)
    assert purge(output) == 0
    assert find_traces(output, tensors, texts) == []
    assert len(LatentDataset(output)) == 4
    add_unit(output, captions(range(6, 10)))
    finish(output)
    assert len(LatentDataset(output)) == 8 and verify([str(output)]) == 0
    assert json.loads((output / "index" / "0000.json").read_text()) == {"format_version": 2, "parts": [], "purge": 0}


def test_a_damaged_tar_is_not_copied(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(output)
    shard = next((output / "shards").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"?")
    assert purge(output) == 1
    assert "missing or damaged, so its other samples cannot be copied" in capsys.readouterr().out
    shard.write_bytes(content)
    assert verify([str(output)]) == 1, "the purge is not finished"
    assert purge(output) == 0 and verify([str(output)]) == 0


def test_another_sample_with_the_same_latent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        moments = captioned_set._moments
        patch.setattr(captioned_set, "_moments", lambda number, bucket, card: moments(number % 3, bucket, card))
        add_unit(output, captions(range(4)))
    finish(output)
    ids = dict(zip(*(LatentDataset(output).columns[name].to_pylist() for name in ("key", "id")), strict=True))
    remove(output, "meta_score == 0")
    assert purge(output) == 0
    assert f"{ids['3']}: another sample with the same latent" in capsys.readouterr().out


def test_unknown_files_among_purges_are_refused_by_name(output: Path) -> None:
    (output / "purges").mkdir()
    (output / "purges" / "0000.arrow").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"purges/0000.arrow, which this program"):
        LatentDataset(output)


def test_exports_are_listed_and_stay(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = tmp_path / "exported"
    assert export([str(output), "--to", "parquet", "--output", str(exported), "--local"]) == 0
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    remove(output)
    capsys.readouterr()
    for arguments, words in ((["--dry-run"], "stays as it is"), ([], "not touched")):
        assert purge(output, *arguments) == 0
        shown = capsys.readouterr().out
        assert words in shown and f"{exported.as_uri()} (parquet, 10 samples, 20" in shown
    assert {path: path.read_bytes() for path in before} == before
    assert verify([str(output)]) == 0


def test_damaged_metadata_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(output)
    path = output / "metadata" / "u000006.0.parquet"
    path.write_bytes(b"PAR1 damaged PAR1")
    assert purge(output) == 1
    assert "metadata/u000006.0.parquet is damaged" in capsys.readouterr().out and not (output / "purges").exists()
