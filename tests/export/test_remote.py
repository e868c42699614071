"""Exports into a bucket, and an export on Ray that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.encode_text import main as encode_text
from jobs.export_dataset import main
from pipeline.bucket import Bucket
from pipeline.export.exporter import COMPLETE, UNFINISHED
from pipeline.storage.store import Store
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

UNITS = 24


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of many units of two samples."""
    buckets = [Bucket(1, 32, 32), Bucket(17, 32, 56)] * UNITS
    folder = tmp_path_factory.mktemp("remote") / "out"
    write_latents(folder, buckets, samples_per_shard=2, distinct_captions=5)
    assert encode_text([str(folder), *"--encoder demo --layer t5 --captions caption --local --cpus 1".split()]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def whole(output: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([output, "--to", "ltx", "--text", "t5", "--local", "--output", str(folder)]) == 0
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_an_export_into_a_bucket_resumes_and_puts_many_files_at_a_time(
    output: str, whole: dict[str, bytes], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"{s3}/e")
    arguments = [output, "--to", "ltx", "--text", "t5", "--local", "--output", store.url]
    put_new, lock, active, most, puts = Store.put_new, threading.Lock(), 0, 0, 0

    def counted(self: Store, path: str, content: bytes | Path) -> bool:
        nonlocal active, most, puts
        with lock:
            active, puts = active + 1, puts + 1
            most = max(most, active)
            if puts == len(whole) // 2:
                raise KeyboardInterrupt
        try:
            return put_new(self, path, content)
        finally:
            with lock:
                active -= 1

    monkeypatch.setattr(Store, "put_new", counted)
    assert main(arguments) == 130
    assert store.size(COMPLETE) is None and store.size(UNFINISHED)
    assert main(arguments) == 0
    assert most > 1, "the files of a unit are put one after another"
    assert store.size(UNFINISHED) is None
    assert {path: store.get(path) for path in whole} == whole
    assert json.loads(store.get(COMPLETE))["samples"] == 2 * UNITS


@pytest.mark.long
def test_a_killed_export_on_ray_finishes_with_the_same_files(
    output: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = [output, "--to", "ltx", "--text", "t5", "--output", str(tmp_path)]
    command = [sys.executable, "jobs/export_dataset.py", *arguments]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL) as job:
        records = tmp_path / ".latentmill" / "units"
        while job.poll() is None and not (records.is_dir() and any(records.iterdir())):
            time.sleep(0.002)
        os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / UNFINISHED).exists() and not (tmp_path / COMPLETE).exists()
    assert len(list(records.iterdir())) < UNITS
    assert main(arguments) == 0
    assert files(tmp_path) == whole
