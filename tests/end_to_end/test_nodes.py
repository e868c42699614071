"""Nodes that join, get lost, or never join while a job runs. Each node holds one encoder; the head holds none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from ray.cluster_utils import Cluster

from jobs.program import INTERRUPTED
from pipeline.errors import ConfigError
from pipeline.executor.ray_cluster import check_encoder_fits
from pipeline.recipe import Run
from tests.support.oracle import assert_sound, tree
from tests.support.painted import HELD, VARIABLE, command, undisturbed_tree, write_videos
from tests.support.paths import ROOT
from tests.support.processes import descendants, end
from tests.support.s3_server import s3_bucket

NUM_VIDEOS = 16
OPTIONS = ("--cpus", "1", "--unit-clips", "2", "--micro-batch", "2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), NUM_VIDEOS)


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return undisturbed_tree(videos, tmp_path_factory.mktemp("undisturbed") / "out", *OPTIONS)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a file. While it exists, no unit ends."""
    return tmp_path_factory.mktemp("held") / "file"


@pytest.fixture(scope="module")
def cluster(held: Path) -> Iterator[Cluster]:
    deeds = json.dumps(dict.fromkeys(range(NUM_VIDEOS), "slow") | {"slow_s": 0.2})
    variables = {VARIABLE: deeds, HELD: str(held), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


class Job:
    """A job on the cluster, with its output in a log file."""

    def __init__(self, cluster: Cluster, videos: Path, folder: Path, *more: str, output: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.output, self._log = folder / "out", folder / "job.log"
        arguments = command(videos, self.output, *OPTIONS, "--ray-address", cluster.address, *more)
        arguments += ["--output", output] if output else []
        with self._log.open("wb") as file:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ, stdout=file, stderr=file)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until(self, happened: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 120
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.said
            time.sleep(0.02)

    def at_work(self) -> set[str]:
        """Ids of the nodes that have begun units and not committed them yet."""
        found = set()
        for path in self.output.glob("attempts/*/*.json"):
            try:
                found.add(json.loads(path.read_bytes())["node"])
            except FileNotFoundError:
                continue
        return found

    def num_commits(self) -> int:
        return len(list(self.output.glob("metadata/*.parquet")))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_job_without_a_large_enough_node_says_so_and_ends(
    cluster: Cluster, videos: Path, tmp_path: Path, gpus: int
) -> None:
    job = Job(cluster, videos, tmp_path, "--progress-timeout-s", "8", "--gpus", str(gpus))
    assert job.process.wait(timeout=120) == 1, job.said
    assert (
        f"waiting for a node with 1 CPU and {gpus} GPU; the cluster's nodes have 0 CPU and 0 GPU. The job goes"
        in job.said
    )
    assert "and ends after 8 s without a finished unit (--progress-timeout-s)" in job.said
    assert "\nerror: no unit has ended for 8 s: " in job.said and "Traceback" not in job.said


def test_an_encoder_that_does_not_fit_the_only_machine_is_refused() -> None:
    run = Run(output="out", vae="demo", sources=(), cpus=2, gpus=1)
    check_encoder_fits(run, {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(ConfigError, match=r"of 2 CPU and 1 GPU does not fit .* finds 8 CPU and 0 GPU: lower --cpus or"):
        check_encoder_fits(run, {"CPU": 8.0})


def test_a_node_that_joins_is_used_and_a_lost_node_costs_only_time(
    cluster: Cluster, videos: Path, held: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    first = cluster.add_node(num_cpus=1)
    job = Job(cluster, videos, tmp_path, "--actors", "3")
    job.wait_until(lambda: job.num_commits() >= 1)
    held.touch()
    second = cluster.add_node(num_cpus=1)
    job.wait_until(lambda: job.at_work() == {first.node_id, second.node_id})
    agents = descendants(first.all_processes["raylet"][0].process.pid)
    cluster.remove_node(first, allow_graceful=False)
    end(agents)
    held.unlink()
    assert job.process.wait(timeout=200) == 0, job.said
    assert not [row for row in assert_sound(job.output) if row["reject_reason"]]
    assert tree(job.output) == undisturbed
    remove(cluster, second)


def remove(cluster: Cluster, node: Any) -> None:
    """Remove a node, and wait until no job takes it for one of the cluster's."""
    cluster.remove_node(node)
    cluster.wait_for_nodes()


def encoders(node: Any) -> set[int]:
    """Ids of a node's processes that run an encoder."""
    found = set()
    for pid in descendants(node.all_processes["raylet"][0].process.pid):
        with contextlib.suppress(OSError):
            if "PaintedActor" in Path(f"/proc/{pid}/cmdline").read_text():
                found.add(pid)
    return found


@pytest.mark.long
def test_a_job_says_who_holds_the_node_that_it_waits_for_and_ctrl_c_frees_it(
    cluster: Cluster, held: Path, tmp_path: Path
) -> None:
    """The first job is interrupted while a clip is in its VAE. It leaves no encoder, and the second job goes on."""
    videos = write_videos(tmp_path / "videos", 2)
    node = cluster.add_node(num_cpus=1)
    held.touch()
    first = Job(cluster, videos, tmp_path / "first")
    first.wait_until(first.at_work)
    interrupted = encoders(node)
    second = Job(cluster, videos, tmp_path / "second")
    second.wait_until(lambda: "waiting for a free node" in second.said)
    sent_s = time.monotonic()
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(timeout=60) == INTERRUPTED and time.monotonic() - sent_s < 20, first.said
    while interrupted & encoders(node):
        assert time.monotonic() - sent_s < 40
        time.sleep(0.1)
    held.unlink()
    assert second.process.wait(timeout=200) == 0, second.said
    remove(cluster, node)
    assert interrupted and "interrupted; run the same command again to go on" in first.said, first.said
    assert "waiting" not in first.said and "Traceback" not in first.said, first.said
    name = rf"node {re.escape(os.uname().nodename)} \({node.node_id[:12]}\)"
    line = (
        rf"waiting for a free node with 1 CPU and 0 GPU; {name} has 0 of 1 CPU free: job \w{{8}} "
        rf"\(process {first.process.pid} on [\d.]+\) has held 1 CPU for \d+ s\. The job goes on when they are free again "
        r"or another node joins, and ends after \d+ s without a finished unit"
    )
    assert re.search(line, second.said) and "the wait for a node is over" in second.said, second.said


def test_a_node_without_credentials_leaves_its_units_to_the_others(
    cluster: Cluster, videos: Path, held: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """The output is in a bucket. On the other node the job ends with the node's name, since no node is left."""
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    with s3_bucket() as bucket:
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        broken = cluster.add_node(num_cpus=1, env_vars=aws | without)
        alone = Job(cluster, videos, tmp_path / "alone", output=f"{bucket}/alone")
        assert alone.process.wait(timeout=120) == 1, alone.said
        last = alone.said.strip().splitlines()[-1]
        assert last.startswith("error: ") and "Unable to locate credentials" in last and "Traceback" not in alone.said
        good = cluster.add_node(num_cpus=1, env_vars=aws)
        held.touch()  # or the good node might have done all of it before the other one has tried to start
        job = Job(cluster, videos, tmp_path / "both", "--actors", "2", output=f"{bucket}/both")
        job.wait_until(lambda: "cannot start" in job.said)
        held.unlink()
        assert job.process.wait(timeout=200) == 0, job.said
        for node in (broken, good):
            remove(cluster, node)
        named = rf"the encoder on node {re.escape(os.uname().nodename)} \(\w{{12}}\) cannot start: s3://bucket/both/"
        assert re.search(named, job.said) and "its units go to" in job.said, job.said
        fsspec.filesystem("s3").get(f"{bucket}/both/", f"{tmp_path}/copy/", recursive=True)
    assert_sound(tmp_path / "copy")
    assert tree(tmp_path / "copy") == undisturbed
