"""The steps that prove a store: source, output, kill and resume, verify, loader, two writers at once.

Each step runs in processes of its own, which end with it: clients of stores do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs import verify_dataset
from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.storage.drivers.clients import DRIVERS
from pipeline.storage.failpoints import Failpoint
from pipeline.storage.range_client import VARIABLE as RANGE_CLIENT
from pipeline.storage.store import Store
from tests.end_to_end.crash import Scene, add_reference, in_child, survive
from tests.support.clips_maker import make_clip

STEPS = ("source", "output", "kill and resume", "verify", "loader", "loader without obstore", "two writers at once")
NAMES = 20
"""Number of files that two writers create at once."""


class DemoScene(Scene):
    """Real videos and the demo VAE."""

    vae = "demo"
    bucket = Bucket(17, 64, 112)

    def video(self, number: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return make_clip(Path(folder) / "clip.mp4", self.num_frames, seed=number).read_bytes()

    def encoding(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def check_samples(self, rows: list[dict[str, Any]], output: Path) -> None:
        samples = [row for row in rows if row["shard"]]
        assert samples and all(row["caption"] == f"number {Path(row['key']).stem}" for row in samples if row["caption"])


@dataclass
class StoreDrill:
    """Runs the steps on one store and keeps their results."""

    url: str
    """URL of an empty folder of the store."""
    folder: Path
    """A local folder, new or empty."""
    single_writer: bool = False
    make_scene: Callable[..., Scene] = DemoScene
    kills: tuple[Failpoint, ...] = (Failpoint.TAR_UPLOADED,)
    """Steps at which jobs are killed, one after the other on one output."""
    results: dict[str, str] = field(default_factory=dict)
    """``passed``, or how a step failed, by the name of the step."""

    def __post_init__(self) -> None:
        importlib.import_module(DRIVERS[self.url.partition("://")[0]].module)  # once, and not in every process
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scene = self.make_scene(self.folder, f"{self.url}/outputs", self.single_writer)
        self.finished = f"{self.url}/finished"
        if self.single_writer:
            self.results["two writers at once"] = "not claimed"

    def run(self) -> dict[str, str]:
        """Run every step, until the source or the output fails."""
        work = {
            "source": self._source,
            "output": self._output,
            "kill and resume": self._kill_and_resume,
            "verify": self._verify,
            "loader": lambda: self._loader("auto"),
            "loader without obstore": lambda: self._loader("fsspec"),
            "two writers at once": self._two_writers_at_once,
        }
        for step in STEPS:
            if step not in self.results:
                self.results[step] = self._problem(work[step]) or "passed"
            if step in ("source", "output") and self.results[step] not in ("passed", "not claimed"):
                break
        return self.results

    def _problem(self, work: Callable[[], None]) -> str:
        """Do a step. Returns the last line that it has printed if it fails."""
        with tempfile.TemporaryFile("w+") as printed:
            with _printing_to(printed.fileno()):
                try:
                    work()
                    return ""
                except AssertionError as error:
                    print(error, file=sys.stderr, flush=True)
            printed.seek(0)
            lines = [line.strip() for line in printed if line.strip()]
        (self.folder / "log").write_text("\n".join(lines))
        said = [line for line in lines if line.startswith(("error:", "AssertionError")) or "Error:" in line]
        return (said or lines or ["failed"])[-1][:300]

    def _source(self) -> None:
        """Encode the same files from the local disk and from the store; the second job makes the reference."""
        scene = self.scene
        local = str(self.folder / "from-disk")
        assert in_child(lambda: scene.encode(local, single_writer=False)) == 0
        assert in_child(self._upload) == 0
        scene.sources = f"{self.url}/sources"
        add_reference(scene)
        assert _latents(Path(local)) == _latents(self.folder / "undisturbed"), "other samples than from the local disk"

    def _upload(self) -> None:
        store = Store(f"{self.url}/sources", single_writer=self.single_writer)
        for path in (*self.folder.glob("videos/*"), self.folder / "more.tar", self.folder / "list.jsonl"):
            store.put_new(str(path.relative_to(self.folder)), path)

    def _output(self) -> None:
        assert in_child(lambda: self.scene.encode(self.finished)) == 0
        assert in_child(lambda: self.scene.check(self.finished)) == 0

    def _kill_and_resume(self) -> None:
        happened = survive(self.scene, [(step, 1) for step in self.kills])
        assert any(happened), "no job was killed"

    def _verify(self) -> None:
        def verify() -> None:
            assert verify_dataset.main([self.finished]) == 0

        assert in_child(verify) == 0

    def _loader(self, client: str) -> None:
        assert in_child(lambda: self._load(client)) == 0

    def _load(self, client: str) -> None:
        """Read every latent of the finished output with a client, and compare them with those of the reference.

        ``auto`` is obstore, unless it refuses an answer of the store, or does not know the store.
        """
        os.environ[RANGE_CLIENT] = client
        found = _all_latents(self.finished)
        expected = _all_latents(str(self.folder / "undisturbed"))
        assert found.keys() == expected.keys() and found
        assert all(np.array_equal(found[name], expected[name]) for name in found)

    def _two_writers_at_once(self) -> None:
        context = multiprocessing.get_context("fork")
        barrier, wins = context.Barrier(2), context.Queue()
        folder = f"{self.url}/{secrets.token_hex(4)}"

        def write(number: int) -> None:
            store = Store(folder)
            large = self.folder / f"large-{number}"
            large.write_bytes(bytes([number]) * (12 << 20))
            contents: list[bytes | Path] = [bytes([number]) * 1000, large]
            for n in range(NAMES):
                barrier.wait(60)
                wins.put((n, number, store.put_new(f"{n}", contents[n % 10 == 0])))

        writers = [context.Process(target=write, args=(number,)) for number in range(2)]
        for writer in writers:
            writer.start()
        outcomes = [wins.get(timeout=120) for _ in range(2 * NAMES)]
        for writer in writers:
            writer.join()
        winners: dict[int, list[int]] = {n: [] for n in range(NAMES)}
        for n, number, won in outcomes:
            winners[n] += [number] if won else []
        several = [n for n in winners if len(winners[n]) > 1]
        assert not several, f"two writers both created {len(several)} of {NAMES} files"
        assert all(winners.values()), "neither writer says that it has created a file"

        def check() -> None:
            store = Store(folder)
            assert all(set(store.get(f"{n}")) == set(winners[n]) for n in winners), "the winner's file was replaced"

        assert in_child(check) == 0


class WebDrill(StoreDrill):
    """The steps of a web server: its folder is filled on the local disk, then it is a source and is read by the loader."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.finished = f"{self.url}/undisturbed"
        self.results |= dict.fromkeys(("output", "kill and resume", "verify", "two writers at once"), "not claimed")

    def _source(self) -> None:
        scene, served = self.scene, self.folder / "undisturbed"
        add_reference(scene)
        scene.names, scene.sources = ("more.tar",), self.url
        fetched = str(self.folder / "fetched")
        assert in_child(lambda: scene.encode(fetched, single_writer=False)) == 0
        expected = {row: value for row, value in _latents(served).items() if row[0] == "more.tar"}
        assert _latents(Path(fetched)) == expected, "other samples than from the local disk"


def _latents(output: Path) -> dict[tuple[str, str, int], tuple[int | None, str | None]]:
    """Checksum and caption of each row of a local output, by source, key and window."""
    rows = [row for path in (output / "metadata").iterdir() for row in pq.read_table(path).to_pylist()]
    return {(row["source"], row["key"], row["window"]): (row["crc32c"], row["caption"]) for row in rows}


def _all_latents(url: str) -> dict[str, np.ndarray]:
    """Every latent of an output by the id of its sample."""
    found = {}
    for batch in LatentDataset(url).batches(1, normalized=False, verify=True, copy=True):
        found |= dict(zip(batch["id"], batch["latents"].numpy(), strict=True))
    return found


@contextlib.contextmanager
def _printing_to(fd: int) -> Iterator[None]:
    """Send what this process and its children print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(before, 1):
            os.dup2(old, number)
            os.close(old)
