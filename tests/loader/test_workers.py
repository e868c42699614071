"""Worker processes: what is pickled to them, and what they may do after a fork."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import s3fs
import torch

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import SampleDataset
from pipeline.storage import range_client
from pipeline.storage.range_client import open_ranges
from pipeline.storage.store import Store
from tests.support.http_server import Reply, serving
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

NUMBER = 64


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "out", [Bucket(1, 32, 32)] * NUMBER)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leaves cycles of references as they are, which the garbage collector would free at any time, or much later."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def opened_with_everything(output: Path, **more: object) -> LatentDataset:
    ids = LatentDataset(output).columns["id"]
    joined = pa.table({"id": ids, "score": range(NUMBER)})
    return LatentDataset(output, where=pc.field("score") >= 10, join=[joined], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [False, True])
def test_pickles_hold_a_path_and_restore_every_column(
    output: Path, tmp_path: Path, cached: bool, temporary: Path, no_collector: None
) -> None:
    data = opened_with_everything(output, cache=tmp_path / "cache" if cached else None)
    dataset = SampleDataset(data, columns=["score"])
    assert len(data.columns) == NUMBER - 10  # a cached property, which is not pickled
    content = pickle.dumps(dataset)
    assert len(content) < 20_000
    again = pickle.loads(content)  # noqa: S301
    assert again.data.columns.equals(data.columns) and again.data.version == data.version
    assert torch.equal(again[5]["latents"], dataset[5]["latents"]) and again[5]["score"] == dataset[5]["score"]
    assert [batch["id"] for batch in again.data.batches(4)] == [batch["id"] for batch in data.batches(4)]
    assert pickle.dumps(again.data.samples)  # pickled once more, to workers of workers
    (folder,) = temporary.iterdir()
    assert ("caption" in str([pa.ipc.open_file(str(path)).schema for path in folder.glob("*.arrow")])) != cached
    del dataset, data, again
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("place", ["disk", "store"])
@pytest.mark.parametrize("steps", [0, 1, 100])
def test_a_dropped_dataset_is_freed_with_its_files(
    output: Path, s3: str, temporary: Path, no_collector: None, place: str, steps: int
) -> None:
    """The reads that a loop had begun when it was left fail, and files that may be missing were looked for."""
    if place == "store":
        s3fs.S3FileSystem(skip_instance_cache=True).put(str(output), f"{s3}/out", recursive=True)
    data = LatentDataset(output if place == "disk" else f"{s3}/out")
    for _ in itertools.islice(data.batches(4), steps):
        pass
    pickle.dumps(data)
    freed = weakref.ref(data)
    del data
    assert freed() is None and not list(temporary.iterdir())


def test_a_pickle_whose_files_are_gone_opens_the_same_version(output: Path, tmp_path: Path, temporary: Path) -> None:
    score = tmp_path / "score.parquet"
    pq.write_table(pa.table({"id": LatentDataset(output).columns["id"], "score": range(NUMBER)}), score)
    data = LatentDataset(output, where="score < 9", join=[str(score)])
    content, in_memory = pickle.dumps(data), pickle.dumps(opened_with_everything(output))
    shutil.rmtree(temporary)
    assert pickle.loads(content).columns.equals(data.columns)  # noqa: S301
    with pytest.raises(
        ConfigError, match=r"table 0 of join= is only in the memory of the process that opened .*/out; write"
    ):
        pickle.loads(in_memory)  # noqa: S301


def test_a_full_temporary_folder_lets_workers_read_the_index_themselves(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.warns(UserWarning, match="worker processes will read the index of .*/out once more each"):
        content = pickle.dumps(opened_with_everything(output))
    assert len(pickle.loads(content)) == NUMBER - 10  # noqa: S301


KILLED = """
import os, pickle, signal, sys
from pipeline.loader import LatentDataset
data = LatentDataset(sys.argv[1])
pickle.dumps(data)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_killed_processes_are_swept(output: Path, temporary: Path) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", KILLED, str(output)], cwd=ROOT, env=environment, check=False)
    (left,) = temporary.iterdir()
    data = LatentDataset(output)
    pickle.dumps(data)
    assert not left.exists() and len(list(temporary.iterdir())) == 1


READ_THEN_START_WORKERS = """
import sys
import torch
from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import SampleDataset, StepSampler

if __name__ == "__main__":
    method, *urls = sys.argv[1:]
    for url in urls:
        data = LatentDataset(url)
        next(iter(data.batches(4)))
        dataset, sampler = SampleDataset(data), StepSampler(data, 4)
        dataset[0]
        loader = torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, num_workers=1, timeout=60, multiprocessing_context=method
        )
        print(len({name for batch in loader for name in batch["id"]}))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_after_their_parent_has_read(output: Path, s3: str, tmp_path: Path, method: str) -> None:
    """obstore's threads do not survive a fork: without care, forked workers hang."""
    for path in output.rglob("*"):
        if path.is_file():
            Store(f"{s3}/out").put(str(path.relative_to(output)), path.read_bytes())

    def answer(path: str) -> Reply:
        file = output / path.lstrip("/")
        return Reply(file.read_bytes()) if file.is_file() else Reply(status=404)

    script = tmp_path / "read.py"
    script.write_text(READ_THEN_START_WORKERS)
    with serving(answer) as server:
        urls = [server.url, f"{s3}/out"] if method == "fork" else [server.url]
        done = subprocess.run(  # a process without the threads of other tests
            [sys.executable, str(script), method, *urls],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0 and done.stdout.split() == [str(NUMBER)] * len(urls), done.stderr[-3000:]


def test_a_forked_process_that_must_use_obstore_is_refused_with_advice(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(f"{s3}/out").put_new("file", b"0123456789")
    monkeypatch.setenv(range_client.VARIABLE, "obstore")
    store = Store(f"{s3}/out")
    assert open_ranges(store)("file", 0, 2) == b"01"
    results = multiprocessing.get_context("fork").SimpleQueue()

    def read() -> None:
        try:
            open_ranges(store)
        except ConfigError as error:
            results.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join(30)
    assert "start workers with multiprocessing_context='spawn'" in results.get()
