"""Edits for the drill of ``crash.py``: the commands that remove, take back and tag, and jobs during which others remove."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from jobs.edit_dataset import main as edit
from jobs.verify_dataset import main as verify
from pipeline.encode.shard_attempt import ShardAttempt
from pipeline.errors import StoreError
from pipeline.loader import LatentDataset
from pipeline.storage.failpoints import Failpoint
from pipeline.storage.store import Store
from tests.end_to_end.crash import EDIT_STEPS, LOCAL_STEPS, TEXT_STEPS, Scene, in_child
from tests.end_to_end.crash_text import TextScene
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.oracle import tree
from tests.support.painted import painted

NUM_SAMPLES = 8
REASON = ("--reason", "ticket 12")


class EditScene(TextScene):
    """A finished output, and commands that change what its readers see.

    A job is all of the commands, one after the other. A job that continues a killed one begins with the command that was
    killed, as a user would.
    """

    written = ""

    def make_sources(self) -> None:
        """Make an output of latents, and the commands."""
        self.latents = self.folder / "latents"
        add_unit(self.latents, [Captions(f"number {n}", score=float(n)) for n in range(NUM_SAMPLES)])
        finish(self.latents)
        items, ids = self.folder / "items", self.folder / "ids"
        items.write_text(json.dumps({"source": "numbers", "ordinal": 5}))
        ids.write_text(LatentDataset(self.latents).columns["id"][4].as_py())
        self.commands: list[tuple[str, ...]] = [
            ("remove", "--where", "meta_score < 2", *REASON),
            ("tag", "v1"),
            ("remove", "--items", str(items), *REASON),
            ("remove", "--ids", str(ids), "--whole-items", *REASON),
            ("undo", "last"),
            ("undo", "0"),
            ("tag", "v2"),
            ("remove", "--where", "meta_score > 6", *REASON),
            ("undo", "last"),
            ("untag", "v1"),
        ]

    @property
    def steps(self) -> list[Failpoint]:
        """The steps that these commands reach."""
        return [*(LOCAL_STEPS if self.outputs is None else ()), *EDIT_STEPS, Failpoint.CARD_WRITTEN]

    def litter(self, output: str) -> None:
        """A half-written file that an earlier killed command may have left."""
        if self.outputs is None:
            self.leave_scratch_file(output)

    def encode(self, output: str, single_writer: bool | None = None) -> None:
        """All commands that are not done, in this process."""
        progress = self.folder / f"done-{Path(output).name}"
        done = int(progress.read_text()) if progress.exists() else 0
        flags = ["--single-writer"] if (self.single_writer if single_writer is None else single_writer) else []
        for number, command in enumerate(self.commands[done:], done + 1):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                code = edit([*flags, output, *command])
            is_untagged_already = command[0] == "untag" and "has no tag" in said.getvalue()
            assert code == 0 or is_untagged_already, said.getvalue()
            progress.write_text(str(number))

    def check_never_torn(self, output: str) -> None:
        """Check that no other file was touched, and that readers, also those of a tag, can open the output."""
        with self.files(output) as copy:
            assert tree(copy).items() >= tree(self.latents).items()
            for version in (None, *(path.stem for path in copy.glob("tags/*.json"))):
                assert 4 <= len(LatentDataset(copy, version=version)) <= NUM_SAMPLES

    def check_content(self, output: Path) -> None:
        """Check that the output is intact, and what its versions have."""
        assert verify([str(output)]) == 0
        assert not (output / ".partial").exists()
        newest, tagged = LatentDataset(output), LatentDataset(output, version="v2")
        assert newest.columns["key"].to_pylist() == tagged.columns["key"].to_pylist() == list("0123467")

    def promised(self, output: Path) -> dict[str, str]:
        """What every file of the output says, but for times. The card shows which rows it leaves out."""
        edits = {path: json.dumps(_without_times(path)) for path in output.glob("edits/*")}
        tags = {path: json.dumps(json.loads(path.read_text()) | {"time": ""}) for path in output.glob("tags/*")}
        texts = edits | tags | {path: path.read_text() for path in output.glob("README.md")}
        return tree(output) | {str(path.relative_to(output)): text for path, text in texts.items()}


def _without_times(path: Path) -> Any:
    table = pq.read_table(path)
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return facts | {"time": ""}, [row | {"time": ""} for row in table.to_pylist()]


class EditedJobScene(Scene):
    """Jobs during which others remove an item of the unit in flight, and items and a window that are not encoded yet.

    The undisturbed job finds the same edits when it begins.
    """

    removals = (
        ('{"source": "videos", "key": "1.mp4"}', '{"source": "more.tar", "ordinal": 2}'),
        ('{"source": "videos", "key": "5.mp4"}',),
    )
    """Lines of the files of items that are removed, one file after the other."""
    num_frames = 40  # two windows each

    def __init__(self, folder: Path, outputs: str | None = None, single_writer: bool = False) -> None:
        super().__init__(folder, outputs, single_writer)
        self.removing = threading.Lock()  # two units are in flight
        for number, lines in enumerate(self.removals):
            (folder / f"items-{number}").write_text("\n".join(lines))

    other_steps = (
        *TEXT_STEPS,
        Failpoint.TAG_RECORDED,
        Failpoint.TAG_REMOVED,
        Failpoint.DATASET_RECORDED,
        Failpoint.PLAN_RECORDED,
    )

    def prepare(self, output: str) -> None:
        """Record the plan; for the undisturbed job also what is removed."""
        with mock.patch("pipeline.run.encode_units", return_value=iter([])), contextlib.suppress(StoreError):
            super().encode(output)
        if not self.reference:
            self.remove(output)

    def remove(self, output: str) -> None:
        """Remove all items, after what is removed already."""
        flags = ["--single-writer"] if self.single_writer else []
        for number in range(len(self.removals)):
            items = str(self.folder / f"items-{number}")
            with self.removing, contextlib.redirect_stdout(io.StringIO()) as said:
                assert edit([*flags, output, "remove", "--items", items, *REASON]) == 0, said.getvalue()

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Remove when a unit is complete in the tar on the local disk, but not committed."""
        fill = ShardAttempt.fill

        def fill_then_remove(attempt: ShardAttempt, is_stopped: Callable[[], bool]) -> bool:
            filled = fill(attempt, is_stopped)
            self.remove(attempt.context.settings.run.output)
            return filled

        with ExitStack() as stack:
            stack.enter_context(super().encoding())
            stack.enter_context(mock.patch.object(ShardAttempt, "fill", fill_then_remove))
            yield

    def check_samples(self, rows: list[dict[str, Any]], output: Path) -> None:
        """Check that what is removed became rejects, and that captions and latents of the others belong together."""
        removed = {(row["source"], row["ordinal"]) for row in rows if row["reject_reason"] == "removed"}
        assert len(removed) == 3 and len(Store(str(output)).list_files("edits")) == 2
        super().check_samples(rows, output)


class LateEditScene(EditedJobScene):
    """Jobs that are killed after a commit, and continued after others have removed samples of every unit.

    Units that were committed before have the bytes of an undisturbed job without edits, and all others those of one that
    finds these edits when it begins. Readers see the same samples, whichever these units are.
    """

    def __init__(self, folder: Path, outputs: str | None = None, single_writer: bool = False) -> None:
        super().__init__(folder, outputs, single_writer)
        self.without_edits = folder / "without-edits"
        assert in_child(lambda: Scene.encode(self, str(self.without_edits), single_writer=False)) == 0

    @property
    def steps(self) -> list[Failpoint]:
        """The step after which these jobs are killed."""
        return [Failpoint.UNIT_COMMITTED]

    def litter(self, output: str) -> None:
        """Leave nothing."""

    def prepare(self, output: str) -> None:
        """Record the plan and the edits of the undisturbed job; nothing for others."""
        if not self.reference:
            super().prepare(output)

    def encoding(self) -> AbstractContextManager[None]:
        """What is replaced in the product while a job runs."""
        return painted()

    def encode(self, output: str, single_writer: bool | None = None) -> None:
        """The job. If another one was killed before, others remove samples first."""
        store = Store(output)
        if store.list_files("metadata") and not store.list_files("edits"):
            self.remove(output)
        super().encode(output, single_writer)

    def promised(self, output: Path) -> dict[str, str]:
        """What readers see of every sample."""
        samples = LatentDataset(output).columns.select(["id", "key", "window", "caption", "crc32c"]).to_pylist()
        return {sample["id"]: json.dumps(sample) for sample in samples}

    def check_samples(self, rows: list[dict[str, Any]], output: Path) -> None:
        """Check that each unit is that of one of the two undisturbed outputs, and that samples have their own captions."""
        undisturbed = tree(self.without_edits).items() | tree(self.folder / "undisturbed").items()
        for folder in ("metadata", "shards"):
            made = {(path, digest) for path, digest in tree(output).items() if path.startswith(folder)}
            assert made and made <= undisturbed
        Scene.check_samples(self, rows, output)
