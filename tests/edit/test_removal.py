"""Removing samples and items: what is recorded, what readers then see, and what is said about names that are not there."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from unittest import mock

import pytest

from jobs.edit_dataset import main as edit
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset, MixedDataset, agreement
from pipeline.output.edits.edits import newest_edits
from pipeline.storage.failpoints import VARIABLE
from pipeline.storage.store import Store
from pipeline.text.sample_captions import read_samples
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.paths import ROOT


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    add_unit(folder, [Captions(f"number {n}", score=float(n)) for n in range(6)])
    add_unit(folder, [Captions(f"number {n}", score=float(n)) for n in range(6, 10)])
    finish(folder)
    return folder


def keys(folder: Path | str, **options: str) -> list[str]:
    return LatentDataset(folder, **options).columns["key"].to_pylist()


def remove(output: Path, *arguments: str) -> int:
    return edit([str(output), "remove", *arguments, "--reason", "ticket 12"])


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_filter_removes_samples_for_every_reader(output: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert remove(output, "--where", "meta_score >= 8") == 0
    assert keys(output) == [str(n) for n in range(8)]
    data = LatentDataset(output, "meta_score > 5", cache=tmp_path / "cache")
    assert data.columns["key"].to_pylist() == ["6", "7"] and len(data) == 2
    assert {path: path.read_bytes() for path in before} == before, "nothing is rewritten"
    rows = newest_edits(Store(str(output))).rows.to_pylist()
    assert [(row["source"], row["ordinal"], row["key"], row["reason"]) for row in rows] == [
        ("numbers", 8, "8", "ticket 12"),
        ("numbers", 9, "9", "ticket 12"),
    ]
    cached = LatentDataset(output, cache=tmp_path / "cache")
    assert cached.samples.digest == LatentDataset(output).samples.digest != data.samples.digest
    captions = [text for batch in cached.batches(2) for text in batch["caption"]]
    assert sorted(captions) == [f"number {n}" for n in range(8)]


def test_ids_and_items_are_removed_and_what_is_not_there_is_named(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = dict(zip(keys(output), LatentDataset(output).columns["id"].to_pylist(), strict=True))
    assert remove(output, "--ids", write(tmp_path / "ids", ids["3"], "0" * 20)) == 1
    assert f"{'0' * 20}: not there, and not recorded" in capsys.readouterr().out
    items = write(
        tmp_path / "items", "4", '{"source": "numbers", "ordinal": 5}', '{"uri": "0.png"}', '{"source": "others"}'
    )
    assert remove(output, "--items", items) == 1
    assert '{"source": "others"}: not there' in capsys.readouterr().out
    assert keys(output) == ["1", "2", "6", "7", "8", "9"]
    assert remove(output, "--items", write(tmp_path / "items", "4", "3")) == 0
    capsys.readouterr()
    assert remove(output, "--items", write(tmp_path / "items", "4", "3")) == 0
    assert "nothing to record; edits 2 are the newest" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [["{}"], ['{"ordinal": 3}'], ['{"source": 3}'], ['{"window": 3}'], ["{"], [""]])
def test_items_that_name_nothing_are_refused(output: Path, tmp_path: Path, lines: list[str]) -> None:
    assert remove(output, "--items", write(tmp_path / "items", *lines)) == 2
    assert not (output / "edits").exists()


@pytest.mark.parametrize("where", ["meta_score > 100", "no_such == 1", "meta_score"])
def test_a_filter_that_finds_nothing_is_refused(output: Path, where: str) -> None:
    assert remove(output, "--where", where) == 2


def test_a_source_and_whole_items_are_removed_with_what_is_yet_to_come(output: Path, tmp_path: Path) -> None:
    assert remove(output, "--where", "meta_score < 2", "--whole-items") == 0
    assert keys(output)[0] == "2"
    assert remove(output, "--items", write(tmp_path / "items", '{"source": "numbers"}')) == 0
    add_unit(output, [Captions("later")])
    finish(output)
    assert keys(output) == []


def test_undo_takes_one_generation_back_and_only_once(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edit([str(output), "undo", "last"]) == 2
    for n in range(3):
        assert remove(output, "--where", f"meta_score == {n}") == 0
    for _ in range(2):
        assert edit([str(output), "undo", "1"]) == 0
        assert keys(output)[:2] == ["1", "3"]
    capsys.readouterr()
    assert edit([str(output), "undo", "last"]) == 0, "a killed command may be run again"
    said = capsys.readouterr().out
    assert "undo of generation 1 already; generations that can be taken back: 0, 2" in said
    assert keys(output)[:2] == ["1", "3"]
    assert edit([str(output), "undo", "2"]) == 0
    assert keys(output)[:3] == ["1", "2", "3"]
    for generation in ("3", "5"):
        assert edit([str(output), "undo", generation]) == 2
        assert f"generation {generation} removed nothing" in capsys.readouterr().out
    assert remove(output, "--where", "meta_score == 1") == 0
    assert edit([str(output), "undo", "last"]) == 0
    assert newest_edits(Store(str(output))).generation == 6


def test_two_removals_at_once_add_up(output: Path) -> None:
    threads = [threading.Thread(target=remove, args=(output, "--where", f"meta_score == {n}")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(output) == ["6", "7", "8", "9"]
    edits = newest_edits(Store(str(output)))
    assert edits.generation == 5 and sorted(edits.rows["generation"].to_pylist()) == list(range(6))


def test_tags_and_versions_pin_an_index_and_its_edits(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert remove(output, "--where", "meta_score == 0") == 0
    assert edit([str(output), "tag", "v1"]) == 0
    pinned = [batch["caption"] for batch in LatentDataset(output, version="v1").batches(2)]
    state = LatentDataset(output, version="v1").batches(2).state_dict()
    assert state["dataset_version"] == "index=0,edits=0"
    assert remove(output, "--where", "meta_score > 5") == 0
    add_unit(output, [Captions("new", score=0.5)])
    finish(output)
    assert len(LatentDataset(output)) == 6
    for version in ("v1", state["dataset_version"]):
        data = LatentDataset(output, version=version)
        assert [batch["caption"] for batch in data.batches(2)] == pinned
        data.batches(2).load_state_dict(state)
    with pytest.raises(
        ConfigError, match=r"belongs to version index=0,edits=0, and this is version index=1,edits=1 with 6"
    ):
        LatentDataset(output).batches(2).load_state_dict(state)
    LatentDataset(output).batches(2).load_state_dict(state, new_epoch=True)
    assert edit([str(output), "tag", "v1"]) == 2, "a tag never changes"
    assert edit([str(output), "tag", "index=1"]) == 2
    assert edit([str(output), "tag", "v0", "--version", "index=0"]) == 0
    assert len(keys(output, version="v0")) == 10
    capsys.readouterr()
    assert edit([str(output), "log"]) == 0
    log = capsys.readouterr().out
    assert re.search(r"plan +0  20\d\d-\d\d-\d\dT\S+Z  1 unit", log)
    assert re.search(r"index +1  20\d\d-\d\d-\d\dT\S+Z  11 samples", log)
    assert "remove --where meta_score > 5, 4 rows: ticket 12" in log and "tag    v0" in log and "11 samples" in log
    assert edit([str(output), "untag", "v1"]) == 0
    with pytest.raises(ConfigError, match="has no tag 'v1'; there are v0"):
        LatentDataset(output, version="v1")


@pytest.mark.parametrize("step", ["file-written", "file-linked"])
@pytest.mark.parametrize("command", [["remove", "--where", "meta_score < 3", "--reason", "ticket 12"], ["tag", "v1"]])
def test_a_command_that_is_killed_may_be_run_again(output: Path, step: str, command: list[str]) -> None:
    words = [sys.executable, "jobs/edit_dataset.py", "--single-writer", str(output), *command]
    environment = os.environ | {VARIABLE: f"{step}:2"}  # the first file is a probe of the store
    assert subprocess.run(words, cwd=ROOT, env=environment, capture_output=True).returncode == -signal.SIGKILL
    made = [path for name in ("edits", "tags") for path in output.glob(f"{name}/*")]
    before = [path.read_bytes() for path in made]
    assert len(made) == (step == "file-linked")
    assert edit([str(output), *command]) == 0
    assert [path.read_bytes() for path in made] == before
    assert len([path for name in ("edits", "tags") for path in output.glob(f"{name}/*")]) == 1
    assert len(LatentDataset(output)) == (7 if command[0] == "remove" else 10)


def test_ranks_that_open_a_tag_take_the_version_that_rank_0_found(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, bytes] = {}
    store = mock.Mock(set=lambda key, value: values.update({key: value.encode()}), get=values.get)
    store.check = lambda keys: all(key in values for key in keys)
    monkeypatch.setattr(agreement, "_shared_store", lambda: store)
    monkeypatch.setattr(agreement, "WAIT_S", 0.1)
    opened = [("v1", "one"), (None, "newest"), ("v1", "two")]
    ranks = []
    for rank in range(2):
        agreement._opened.clear()
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        order = opened if rank == 0 else [opened[1], opened[0], opened[2]]
        ranks.append([agreement.adopt_version("out", tag, found if rank == 0 else "other") for tag, found in order])
    assert ranks == [["one", "newest", "two"], ["newest", "one", "two"]]


def test_the_page_tells_readers_of_plain_shards_what_to_leave_out(output: Path, tmp_path: Path) -> None:
    assert remove(output, "--where", "meta_score == 2") == 0
    assert remove(output, "--items", write(tmp_path / "items", '{"source": "numbers", "ordinal": 3}', "7")) == 0
    page = (ROOT / "pipeline" / "loader" / "README.md").read_text()
    code = next(block for block in re.findall(r"```py\n(.*?)```", page, flags=re.S) if "remains" in block)
    code = code.replace("latents/edits/0000", f"{output}/edits/0001")
    samples = []
    for shard in sorted(output.glob("shards/*.tar")):
        with tarfile.open(shard) as tar:
            samples += [{"json": json.load(tar.extractfile(m))} for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    names = {"dataset": mock.Mock(select=lambda remains: [s["json"]["key"] for s in samples if remains(s)])}
    exec(code, names)  # noqa: S102
    assert names["dataset"] == keys(output) == ["0", "1", "4", "5", "6", "8", "9"]


def test_captions_of_removed_samples_are_not_embedded(output: Path, tmp_path: Path) -> None:
    assert remove(output, "--where", "meta_score > 1", "--whole-items") == 0
    files = (tmp_path / f"scratch{n}" for n in itertools.count())
    portions = read_samples(Store(str(output)), ["caption"], (), lambda: next(files))
    assert sorted(text for table in portions for text in table["caption"].to_pylist()) == ["number 0", "number 1"]


def test_mixed_sets_leave_removed_samples_out(output: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    add_unit(other, [Captions(f"other {n}") for n in range(3)])
    finish(other)
    assert remove(output, "--where", "meta_score > 2") == 0
    data = MixedDataset({str(output): 1, LatentDataset(other, "key != '1'"): 1})
    assert len(data) == 5
