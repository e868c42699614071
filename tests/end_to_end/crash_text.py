"""Text jobs for the drill of ``crash.py``: an output with captions, of which each job embeds a layer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest import mock

import google_crc32c
import pyarrow.parquet as pq
import transformers.models.t5  # noqa: F401 (so that jobs, which are forked from here, start at once)

from jobs.encode_text import main as encode_text
from jobs.verify_dataset import main as verify
from pipeline.progress import run_log as records
from pipeline.storage.failpoints import Failpoint
from pipeline.storage.store import Store
from tests.end_to_end.crash import EDIT_STEPS, Scene, in_child
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.oracle import tree

NUM_SAMPLES = 14


class TextScene(Scene):
    """An output whose captions repeat, and the layer that an undisturbed text job makes of it."""

    other_steps = (Failpoint.CARD_WRITTEN, *EDIT_STEPS)
    written = "layers/t5"

    def make_sources(self) -> None:
        """Make an output of latents with captions."""
        self.latents = self.folder / "latents"
        captions = [Captions(f"caption {n % 5}", long=f"a longer caption of number {n}") for n in range(NUM_SAMPLES)]
        add_unit(self.latents, captions)
        finish(self.latents)

    def num_strings(self) -> int:
        """Number of distinct strings: those of both captions, and the empty one."""
        return 5 + NUM_SAMPLES + 1

    def prepare(self, output: str) -> None:
        """Copy the output without its layer."""
        source, target = Store(str(self.latents)), Store(output, single_writer=self.single_writer)
        for path in source.list_files(""):
            target.put_new(path, source.get(path))

    def encode(self, output: str, single_writer: bool | None = None) -> None:
        """The text job, in this process."""
        arguments = [output, "--encoder", "demo", "--layer", "t5", "--captions", "caption,meta_long_caption", "--local"]
        if self.single_writer if single_writer is None else single_writer:
            arguments.append("--single-writer")
        with mock.patch.object(records, "REPORTS_PER_PART", 2):
            assert encode_text([*arguments, "--cpus", "1", "--unit-strings", "6", "--batch-tokens", "128"]) == 0

    def check_never_torn(self, output: str) -> None:
        """Check that each unit's metadata and the tar that it names are whole, and that no latent was touched."""
        with self.files(output) as copy:
            assert tree(copy).items() >= tree(self.latents).items()
            for path in (copy / self.written / "metadata").glob("*.parquet"):
                table = pq.read_table(path)
                facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
                data = (copy / self.written / facts["shard"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == facts["sha256"]
                for row in table.to_pylist():
                    tensor = data[row["t5_tensor_offset"] :][: row["t5_tensor_nbytes"]]
                    assert google_crc32c.value(tensor) == row["t5_crc32c"]

    def check_content(self, output: Path) -> None:
        """Check that the layer is intact and has every distinct string once."""
        assert verify([str(output)]) == 0
        rows = [
            row for path in (output / self.written / "metadata").iterdir() for row in pq.read_table(path).to_pylist()
        ]
        assert len(rows) == len({row["text_id"] for row in rows}) == self.num_strings()


class GrownTextScene(TextScene):
    """An output that has grown since its layer was made: jobs add a generation to the layer."""

    other_steps = (*TextScene.other_steps, Failpoint.DATASET_RECORDED)

    def __init__(self, folder: Path, outputs: str | None = None, single_writer: bool = False) -> None:
        super().__init__(folder, outputs, single_writer)
        assert in_child(lambda: self.encode(str(self.latents), single_writer=False)) == 0
        add_unit(self.latents, [Captions(f"caption {n}") for n in range(3, 3 + NUM_SAMPLES)])
        finish(self.latents)

    def num_strings(self) -> int:
        """Number of distinct strings, with those of the later samples: two of these are known."""
        return super().num_strings() + NUM_SAMPLES - 2
