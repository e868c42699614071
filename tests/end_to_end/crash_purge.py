"""Purges for the drill of ``crash.py``: an output with tags, earlier indexes, pictures and texts loses some samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow.parquet as pq
import transformers.models.t5  # noqa: F401 (so that jobs, which are forked from here, start at once)

from jobs.edit_dataset import main as edit
from jobs.encode_text import main as encode_text
from jobs.report import main as report
from jobs.verify_dataset import main as verify
from pipeline.loader import LatentDataset
from pipeline.report.pictures import Picture, write_pictures
from pipeline.storage.failpoints import Failpoint
from pipeline.storage.store import Store
from tests.end_to_end.crash import PURGE_STEPS, Scene, in_child
from tests.support.captioned_set import VIDEO_BUCKET, Captions, add_unit, finish
from tests.support.oracle import tree
from tests.support.searcher import find_traces

REMOVED = (1, 2, 9)
WHERE = "meta_score in [1, 2, 9]"
TIMES = ("time", "begun", "finished")
"""Fields of the records of a purge that say when it was carried out."""


class PurgeScene(Scene):
    """An output of which three samples are removed, and what an undisturbed purge makes of it."""

    own_steps = (
        *(Failpoint.FILE_WRITTEN, Failpoint.FILE_LINKED, Failpoint.TAR_UPLOADED, Failpoint.INDEX_PART_WRITTEN),
        *(
            Failpoint.INDEX_RANGE_RECORDED,
            Failpoint.INDEX_RECORDED,
            Failpoint.CARD_WRITTEN,
            Failpoint.ATTEMPT_REMOVED,
            Failpoint.SCRATCH_REMOVED,
        ),
        *(Failpoint.REPORT_WRITTEN, *PURGE_STEPS),
    )

    def make_sources(self) -> None:
        """Make an output, and remember what is removed from it."""
        self.latents = self.folder / "latents"
        self.contents: list[bytes] = []
        """Tensors of the removed samples."""
        self.texts: list[str] = []
        """Their captions and URIs."""
        assert in_child(self._make_output) == 0
        self.reference = tree(self.latents)  # in which ``litter`` finds the name of a unit
        for row in _samples(self.latents, "index/0001.json"):
            if row["meta_score"] in REMOVED:
                tar = (self.latents / row["shard"]).read_bytes()
                self.contents.append(tar[row["tensor_offset"] :][: row["tensor_nbytes"]])
                self.texts += [row["caption"], row["uri"]]
        assert len(find_traces(self.latents, self.contents, self.texts)) > 10

    def _make_output(self) -> None:
        output = str(self.latents)
        add_unit(self.latents, [Captions(f"caption {n} ends.", score=float(n)) for n in range(5)])
        finish(self.latents)
        assert edit([output, "remove", "--where", "meta_score == 1", "--reason", "ticket 11"]) == 0
        assert edit([output, "tag", "first"]) == 0
        add_unit(self.latents, [Captions(f"caption {n} ends.", score=float(n)) for n in range(5, 8)])
        more = [Captions(f"caption {n} ends.", score=float(n), bucket=VIDEO_BUCKET) for n in range(8, 11)]
        add_unit(self.latents, more)
        finish(self.latents)
        arguments = [
            output,
            "--encoder",
            "demo",
            "--layer",
            "t5",
            "--captions",
            "caption",
            "--local",
            "--cpus",
            "1",
            "--unit-strings",
            "4",
        ]
        assert encode_text([*arguments, "--batch-tokens", "128"]) == 0
        rows = LatentDataset(output).columns.to_pylist()
        names = ("id", "bucket", "key", "source", "caption", "start_s", "end_s", "num_frames")
        write_pictures(Store(output), [Picture(**{name: row[name] for name in names}) for row in rows])
        assert edit([output, "remove", "--where", WHERE, "--reason", "ticket 12"]) == 0
        assert report([output]) == 0 and edit([output, "tag", "second"]) == 0

    @property
    def steps(self) -> list[Failpoint]:
        """The steps that a purge reaches."""
        remote = (Failpoint.FILE_WRITTEN, Failpoint.FILE_LINKED, Failpoint.SCRATCH_REMOVED)
        return [step for step in self.own_steps if self.outputs is None or step not in remote]

    def prepare(self, output: str) -> None:
        """Copy the output from before the purge, with what killed jobs may have left."""
        source, target = Store(str(self.latents)), Store(output, single_writer=self.single_writer)
        for path in source.list_files(""):
            target.put_new(path, source.get(path))
        super().litter(output)

    def litter(self, output: str) -> None:
        """Add nothing: ``prepare`` has done it."""

    def encode(self, output: str, single_writer: bool | None = None) -> None:
        """The purge, in this process."""
        single_writer = self.single_writer if single_writer is None else single_writer
        words = [*(["--single-writer"] if single_writer else []), output, "purge", "--local", "--despite-tags"]
        assert edit(words) == 0

    def check_never_torn(self, output: str) -> None:
        """Check that every version that can be opened is whole."""
        with self.files(output) as copy:
            newest = {path.name.split(".")[0]: path for path in sorted((copy / "metadata").iterdir())}
            for path in newest.values():
                table = pq.read_table(path)
                _check_tensors(copy, table.to_pylist(), table.schema.metadata)
            for path in (copy / "index").glob("*.json"):
                if "samples" in json.loads(path.read_text()):
                    _check_tensors(copy, _samples(copy, f"index/{path.name}"), None)

    def check(self, output: str) -> None:
        """Check that the purge is complete, and has the bytes of an undisturbed one but for the times in its records."""
        super().check(output)
        with self.files(output) as copy, self.files(str(self.folder / "undisturbed")) as undisturbed:
            records = [_without_times(folder / "purges") for folder in (copy, undisturbed)]
            assert records[0] == records[1] and len(records[0]) == 3, records

    def check_content(self, output: Path) -> None:
        """Check that nothing of the removed samples is left, and that nothing else has gone."""
        assert verify([str(output)]) == 0
        assert find_traces(output, self.contents, self.texts) == []
        left = {(row["id"], row["caption"]) for row in _samples(self.latents, "index/0001.json")}
        left -= {
            (row["id"], row["caption"])
            for row in _samples(self.latents, "index/0001.json")
            if row["meta_score"] in REMOVED
        }
        data = LatentDataset(output, text="t5")
        assert set(zip(*(data.columns[name].to_pylist() for name in ("id", "caption")), strict=True)) == left
        assert sum(len(batch["id"]) for batch in data.batches(1)) == len(left) == 8
        for tag, count in (("first", 3), ("second", 8)):
            assert len(LatentDataset(output, version=tag)) == count
        assert (output / "report.html").exists() and tree(output)


def _samples(output: Path, index: str) -> list[dict[str, Any]]:
    parts = json.loads((output / index).read_text())["samples"]
    return [row for part in parts for row in pq.read_table(output / part).to_pylist()]


def _check_tensors(output: Path, rows: list[dict[str, Any]], facts: dict[bytes, bytes] | None) -> None:
    if facts is not None and b"shard" in facts:
        assert hashlib.sha256((output / facts[b"shard"].decode()).read_bytes()).hexdigest() == facts[b"sha256"].decode()
    for row in rows:
        if row["shard"] is not None:
            tensor = (output / row["shard"]).read_bytes()[row["tensor_offset"] :][: row["tensor_nbytes"]]
            assert google_crc32c.value(tensor) == row["crc32c"]


def _without_times(folder: Path) -> dict[str, Any]:
    records = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    return {name: {key: value for key, value in record.items() if key not in TIMES} for name, record in records.items()}
