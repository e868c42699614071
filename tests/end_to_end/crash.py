"""Kills jobs at their steps and runs them again: ``python -m tests.end_to_end.crash`` (longer: ``--kills 2 --runs 200``).

Without ``--runs`` the job is killed at every step, the first time it reaches the step (``--all``: every time). In each case
a job in a process of its own is killed by SIGKILL, the output is checked as readers would see it, a second job finishes it,
and every promised file is compared with that of an undisturbed job. ``--output s3://bucket/folder`` drills a store,
``--text`` the jobs that write text layers; ``--help`` lists the other scenes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import secrets
import signal
import socket
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import stvae.vae  # noqa: F401 (so that jobs, which are forked from here, start at once)
from pipeline.bucket import Bucket
from pipeline.errors import LatentmillError
from pipeline.progress import run_log as records
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.failpoints import VARIABLE, Failpoint
from pipeline.storage.store import Store
from stvae import read_card
from tests.end_to_end.crash_scenes import SCENES
from tests.support.golden import TINY
from tests.support.oracle import assert_never_torn, assert_sound, tree
from tests.support.painted import SIZE, assert_together, painted

FOLDER_VIDEOS, TAR_VIDEOS = 7, 3

TEXT_STEPS = (Failpoint.STRINGS_WRITTEN, Failpoint.MAP_WRITTEN)
"""Steps that only text jobs reach."""
EDIT_STEPS = (Failpoint.EDITS_RECORDED, Failpoint.TAG_RECORDED, Failpoint.TAG_REMOVED)
"""Steps that only commands reach that edit an output."""
PURGE_STEPS = tuple(Failpoint)[list(Failpoint).index(Failpoint.PURGE_RECORDED) :]
"""Steps that only purges reach."""
LOCAL_STEPS = (Failpoint.FILE_WRITTEN, Failpoint.FILE_LINKED, Failpoint.SCRATCH_REMOVED)
"""Steps that only jobs with a local output reach."""


class Scene:
    """Sources of every format, and the promised files that an undisturbed job makes of them.

    Everything that opens a store is called in a child process, because clients of stores do not survive a fork.
    """

    vae = str(TINY)
    bucket = Bucket(17, *SIZE)
    num_frames = 20
    other_steps: tuple[Failpoint, ...] = (*TEXT_STEPS, *EDIT_STEPS)
    """Steps that jobs of this scene do not reach."""
    written = ""
    """Folder that its jobs write, relative to the output."""

    def __init__(self, folder: Path, outputs: str | None = None, single_writer: bool = False) -> None:
        """Make what its jobs begin with below ``folder``. ``outputs``: the URL for outputs, or ``folder`` itself."""
        self.folder = folder
        self.outputs = outputs
        self.single_writer = single_writer
        self.reference: dict[str, str] = {}
        self.make_sources()

    def make_sources(self) -> None:
        """Write the sources of every format."""
        self.sources = str(self.folder)
        """Path or URL of the folder that holds the sources."""
        self.names = ("videos", "more.tar", "list.jsonl")
        """Names of the sources in that folder."""
        videos = self.folder / "videos"
        videos.mkdir()
        for number in range(FOLDER_VIDEOS):
            (videos / f"{number}.mp4").write_bytes(self.video(number))
            (videos / f"{number}.txt").write_text(f"number {number}")
        (videos / "bad.mp4").write_text("no video")
        with tarfile.open(self.folder / "more.tar", "w") as tar:
            for number in range(100, 100 + TAR_VIDEOS):
                for suffix, data in (("mp4", self.video(number)), ("txt", f"number {number}".encode())):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        rows = [{"path": "videos/1.mp4", "caption": "number 1"}, {"path": "gone.mp4", "caption": "number 2"}]
        (self.folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    @property
    def steps(self) -> list[Failpoint]:
        """The steps that jobs of this scene reach."""
        left_out = (*self.other_steps, *PURGE_STEPS, *(LOCAL_STEPS if self.outputs is not None else ()))
        return [step for step in Failpoint if step not in left_out]

    def video(self, number: int) -> bytes:
        """The content of a video that shows a number."""
        return json.dumps({"number": number, "num_frames": self.num_frames}).encode()

    def encoding(self) -> AbstractContextManager[None]:
        """What is replaced in the product while a job runs."""
        return painted()

    def encode(self, output: str, single_writer: bool | None = None) -> None:
        """The job, in this process."""
        card = read_card(self.vae)
        recipe = Recipe(vae=card.sha256, buckets=(self.bucket,), micro_batch=(2,), unit_clips=3, windows="all")
        run = Run(
            output=output,
            vae=self.vae,
            sources=tuple(f"{name}={self.sources}/{name}" for name in self.names),
            local=True,
            cpus=1,
            max_rejects=1.0,
            single_writer=self.single_writer if single_writer is None else single_writer,
        )
        # some reports are written while the job runs
        with self.encoding(), mock.patch.object(records, "REPORTS_PER_PART", 2):
            encode(recipe, run, card, say=lambda line: None)

    def prepare(self, output: str) -> None:
        """Write what a job needs to find in its output; nothing for jobs that begin an output."""

    @contextmanager
    def new_output(self) -> Iterator[str]:
        """Path or URL of an output that does not exist yet. A local one is removed at the end."""
        if self.outputs is not None:
            yield f"{self.outputs}/{secrets.token_hex(4)}"
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            yield output

    @contextmanager
    def files(self, output: str) -> Iterator[Path]:
        """The files of an output as a reader sees them now, in a local folder."""
        if "://" not in output:
            yield Path(output)
            return
        store = Store(output)
        with tempfile.TemporaryDirectory(dir=self.folder) as copy:
            for path in store.list_files(""):
                target = Path(copy) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(store.get(path))
            yield Path(copy)

    def litter(self, output: str) -> None:
        """Files that earlier killed jobs may have left: tar, attempt, parts of an index, a half-written file."""
        unit = next(name for name in self.reference if name.startswith("metadata/")).split("/")[1][: -len(".0.parquet")]
        output = f"{output}/{self.written}".rstrip("/")
        store = Store(output, single_writer=self.single_writer)
        paths = [f"shards/{unit}-0badc0de.tar", f"attempts/{unit}/deadbeef-0.json"]
        paths += ["index/0badc0de0badc0de/samples-00000.parquet", "index/ranges/0badc0de0badc0de-0badc0de.json"]
        for path in paths:
            store.put_new(path, b"litter")
        if self.outputs is None:
            self.leave_scratch_file(output)

    def leave_scratch_file(self, output: str) -> None:
        """Leave a half-written file of a dead writer in a local output."""
        partial = Path(output, ".partial", f"{socket.gethostname()}-999999999-{secrets.token_hex(8)}")
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(b"litter")

    def check_never_torn(self, output: str) -> None:
        """Check that nothing that a reader could see is torn."""
        with self.files(output) as copy:
            assert_never_torn(copy)

    def check(self, output: str) -> None:
        """Check that the finished output keeps every promise and has the bytes of an undisturbed job."""
        with self.files(output) as copy:
            self.check_content(copy)
            found = self.promised(copy / self.written)
            differing = {
                path for path in found.keys() | self.reference.keys() if found.get(path) != self.reference.get(path)
            }
            assert not differing, f"not the bytes of an undisturbed job: {sorted(differing)}"
            assert not (copy / self.written / "attempts").exists()

    def promised(self, output: Path) -> dict[str, str]:
        """What is the same after any disturbance, by path."""
        return tree(output)

    def check_content(self, output: Path) -> None:
        """Check that the output keeps every promise that it makes about itself."""
        self.check_samples(assert_sound(output), output)

    def check_samples(self, rows: list[dict[str, Any]], output: Path) -> None:
        """Check that captions and latents belong together."""
        assert_together([row for row in rows if row["key"].endswith(".mp4") or row["key"].isdigit()], output)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process and return the wait status. The exit code is 1 if ``work`` raises."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except LatentmillError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def add_reference(scene: Scene) -> None:
    """Run an undisturbed job with a local output, and keep what it has made as the scene's reference."""
    output = str(scene.folder / "undisturbed")
    assert in_child(lambda: scene.prepare(output)) == 0
    assert in_child(lambda: scene.encode(output, single_writer=False)) == 0
    scene.reference = scene.promised(Path(output, scene.written))
    assert in_child(lambda: scene.check(output)) == 0


def survive(scene: Scene, kills: list[tuple[Failpoint, int]]) -> list[bool]:
    """Run a job for each kill, then one without. Returns for each kill whether the job reached its step.

    Raises AssertionError if a reader could have seen something torn, or if the output differs from an undisturbed job's.
    """
    with scene.new_output() as output:
        assert in_child(lambda: scene.prepare(output)) == 0
        assert in_child(lambda: scene.litter(output)) == 0
        happened = []
        for step, nth in kills:

            def killed_job(at: str = f"{step}:{nth}") -> None:
                os.environ[VARIABLE] = at
                scene.encode(output)

            status = in_child(killed_job)
            assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"exit status {status} at {step}:{nth}"
            happened.append(status != 0)
            assert in_child(lambda: scene.check_never_torn(output)) == 0, f"torn after {step}:{nth}"
        assert in_child(lambda: scene.encode(output)) == 0, f"cannot continue after {kills}"
        assert in_child(lambda: scene.check(output)) == 0, f"wrong after {kills}"
    return happened


def every_step(steps: list[Failpoint], scene: Scene, exhaustive: bool) -> Iterator[tuple[Failpoint, int]]:
    """Kill jobs at each step, the first time or every time that it is reached. Yields each kill that was survived."""
    for step in steps:
        assert survive(scene, [(step, 1)]) == [True], f"the job never reaches {step}"
        yield step, 1
        for nth in itertools.count(2) if exhaustive else ():
            if survive(scene, [(step, nth)]) == [False]:
                break
            yield step, nth


def main() -> None:
    """Print every kill that was survived. An AssertionError describes one that was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="number of kills in a row before the job may finish")
    parser.add_argument("--runs", type=int, default=0, help="number of runs with random kills, instead of every step")
    parser.add_argument("--all", action="store_true", help="kill at every step every time it is reached")
    parser.add_argument("--only", metavar="STEP", help="kill at this step only, instead of every step")
    parser.add_argument("--output", help="URL below which outputs are made (default: a temporary folder)")
    parser.add_argument("--single-writer", action="store_true", help="as for jobs/encode_dataset.py")
    which = parser.add_mutually_exclusive_group()
    for flag in ("--text", "--grown-text", "--edits", "--edited", "--edited-later", "--purge"):
        which.add_argument(flag, dest="scene", action="store_const", const=SCENES[flag], help=SCENES[flag].text)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as folder:
        make_scene = arguments.scene.scene_class() if arguments.scene else Scene
        scene = make_scene(Path(folder), arguments.output, arguments.single_writer)
        add_reference(scene)
        kills = 0
        if not arguments.runs:
            steps = scene.steps if arguments.only is None else [Failpoint(arguments.only)]
            for step, nth in every_step(steps, scene, arguments.all):
                kills += 1
                print(f"survived {step}:{nth}")
        for run in range(arguments.runs):
            chosen = [(generator.choice(scene.steps), generator.randint(1, 6)) for _ in range(arguments.kills)]
            kills += sum(survive(scene, chosen))
            print(f"{run + 1}/{arguments.runs} survived {' '.join(f'{step}:{nth}' for step, nth in chosen)}")
        print(f"{kills} kills survived, every output the same bytes as undisturbed")


if __name__ == "__main__":
    main()
