"""Text layers in a purge: strings that no remaining sample uses leave every file of the layer, and the others stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from jobs.edit_dataset import main as edit
from jobs.encode_text import main as encode_text
from jobs.verify_dataset import main as verify
from pipeline.loader import LatentDataset
from pipeline.text.string_writer import StringWriter
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.searcher import find_traces

ONLY = [f"only sample {n} says this." for n in range(12)]
SHARED = ["two samples say this.", "and two say that."]


def encode(output: Path) -> None:
    arguments = [
        "--encoder",
        "demo",
        "--layer",
        "t5",
        "--captions",
        "caption,meta_long_caption",
        "--local",
        "--cpus",
        "1",
    ]
    assert encode_text([str(output), *arguments, "--unit-strings", "4", "--batch-tokens", "256"]) == 0


def remove(output: Path, where: str) -> None:
    assert edit([str(output), "remove", "--where", where, "--reason", "ticket 12"]) == 0


def purge(output: Path) -> int:
    return edit([str(output), "purge", "--local"])


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("encoded") / "out"
    texts = [Captions(SHARED[n % 2] if n < 4 else ONLY[n], long=ONLY[11 - n], score=float(n)) for n in range(6)]
    add_unit(output, texts)
    finish(output)
    encode(output)
    return output


@pytest.fixture
def output(encoded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "out"))


def embeddings(output: Path, texts: list[str]) -> list[bytes]:
    """Stored embeddings of some captions."""
    found = []
    data = LatentDataset(output, text="t5")
    assert data.text is not None
    for name, forms in data.text.captions.items():
        for sample, text in enumerate(data.columns[name].to_pylist()):
            if text in texts:
                row = int(forms.rows[forms.starts[sample]])
                places = data.text.places[data.text.main.name]
                shard = (output / data.text.shards[data.text.shard_codes[row]]).read_bytes()
                found.append(shard[int(places.offset[row]) :][: int(places.nbytes[row])])
    return found


def batches(output: Path) -> list[Any]:
    return [
        (batch["id"], batch["caption"], batch["text_embeddings"].tolist())
        for batch in LatentDataset(output, text="t5").batches(2)
    ]


def test_strings_of_removed_samples_go_unless_others_use_them(output: Path) -> None:
    gone = [ONLY[4], ONLY[11], ONLY[7]]  # of samples 0 and 4; SHARED[0] stays, since sample 2 has it too
    contents = embeddings(output, gone)
    assert len(contents) == 3 and find_traces(output / "layers", contents, gone)
    remove(output, "meta_score in [0, 4]")
    before = batches(output)
    assert purge(output) == 0
    assert find_traces(output, contents, gone) == []
    assert find_traces(output / "layers", embeddings(output, [SHARED[0]]), []), "a string that is used stays"
    assert batches(output) == before
    assert verify([str(output)]) == 0
    plan = [pq.read_metadata(path).metadata[b"map"].decode() for path in (output / "layers/t5/plan").iterdir()]
    assert {f"maps/{path.name}" for path in (output / "layers/t5/maps").iterdir()} == set(plan)


def test_a_purged_string_is_embedded_anew_when_another_sample_comes_with_it(output: Path) -> None:
    remove(output, "meta_score == 4")
    assert purge(output) == 0
    add_unit(output, [Captions(ONLY[4], long=ONLY[7], score=9.0)])
    finish(output)
    encode(output)
    captions = LatentDataset(output, "meta_score == 9", text="t5").batches(1)
    assert [batch["caption"] for batch in captions] == [[ONLY[4]]]
    assert verify([str(output)]) == 0


def test_a_unit_of_strings_in_flight_does_not_bring_them_back(output: Path) -> None:
    add_unit(output, [Captions("in flight.", score=20.0)])
    finish(output)
    commit: Callable[..., str] = StringWriter.commit
    purged = []

    def commit_after_a_purge(*arguments: Any) -> str:
        if not purged:
            remove(output, "meta_score == 20")
            purged.append(purge(output))
        return commit(*arguments)

    with mock.patch.object(StringWriter, "commit", commit_after_a_purge):
        encode(output)
    assert purged == [0] and find_traces(output, [], ["in flight."]) == []
    assert verify([str(output)]) == 0
