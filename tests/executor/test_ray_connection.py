"""Clusters that cannot be joined: one sentence within seconds, and none of Ray's pages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, LatentmillError
from pipeline.executor import ray_connection, ray_probe
from pipeline.executor.ray_connection import join_cluster
from tests.support.painted import command, write_videos
from tests.support.paths import ROOT
from tests.support.ray_head import free_port, ray_head

VERSIONS = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.58.0\n    Python: 3.11.7\n"
    "This process on node 192.0.2.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)
"""Text of the error that Ray 2.60 raises at a cluster of Ray 2.58."""


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://10.0.0.5:8265", "ray job submit --address http://10.0.0.5:8265 -- python"),
        ("https://ray.example", "is the address of a job server"),
        ("ray://10.0.0.5:10001", "'ray://' is not supported. Give the head's own address, such as 10.0.0.5:6379"),
        ("nonsense", "takes local, auto, or the HOST:PORT"),
        ("10.0.0.5", "takes local, auto"),
        ("head:", "takes local, auto"),
        ("head:port", "takes local, auto"),
        ("head:70000", "takes local, auto"),
        ("", "takes local, auto"),
    ],
)
def test_an_address_that_is_none_of_a_head_is_refused_at_once_with_what_to_write(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        join_cluster(address)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "no.such.host.invalid", "a..b"])
def test_a_dead_address_ends_the_job_in_seconds(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_connection, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(LatentmillError, match="no Ray cluster answers at") as failed:
        join_cluster(f"{host}:{free_port()}")
    assert failed.value.exit_code == 1


def test_a_port_where_something_else_listens_ends_the_job_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_connection, "PROBE_TIMEOUT_S", 2.0)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(LatentmillError, match="although something listens there") as failed:
        join_cluster(f"127.0.0.1:{silent.getsockname()[1]}")
    assert failed.value.exit_code == 1


@pytest.mark.parametrize(
    ("error", "message", "sentence"),
    [
        ("RuntimeError", VERSIONS, "do not match: Version mismatch: The cluster was started with: Ray: 2.58.0 Python"),
        ("OSError", "a\x1b[31m\n\n b", "Ray cannot join the cluster at '127.0.0.1:{port}': a[31m b"),
        ("KeyError", "", "Ray cannot join the cluster at '127.0.0.1:{port}': KeyError"),
    ],
)
def test_any_error_of_ray_is_one_sentence(
    error: str, message: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"error": error, "message": message})
    (tmp_path / "probe.py").write_text(f"import sys; sys.stderr.write('page\\n' * 70); print({said!r})")
    monkeypatch.setattr(ray_probe, "__file__", str(tmp_path / "probe.py"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError) as refused:
            join_cluster(f"127.0.0.1:{port}")
    assert sentence.format(port=port) in str(refused.value) and "\n" not in str(refused.value)


def test_a_token_that_a_real_head_refuses_is_one_sentence_within_thirty_seconds(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", 1)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "the-token-of-this-cluster"}
    with ray_head(tmp_path, "--num-cpus=1", **token) as head:
        for wrong in ({"RAY_AUTH_TOKEN": "another-token-than-that"}, {"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent"}):
            begin_s = time.monotonic()
            done = subprocess.run(
                command(videos, tmp_path / "out", "--ray-address", head.address),
                cwd=ROOT,
                env=os.environ | token | wrong,
                text=True,
                capture_output=True,
                check=False,
                timeout=100,
            )
            lines = (done.stdout + done.stderr).strip().splitlines()
            assert done.returncode == 2 and "token" in lines[-1] and len(lines) <= 3, lines
            assert lines[-1].startswith("error: ") and time.monotonic() - begin_s < 30


@pytest.mark.parametrize("place", ["--local", "--ray-address=local"])
def test_gpus_without_cuda_are_one_sentence(place: str, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", 1)
    arguments = command(videos, tmp_path / "out", place, "--gpus", "1", "--cpus", "1")
    environment = os.environ | {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}', "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=200
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: --gpus needs a GPU, but PyTorch ") and last.endswith(
        "or encode on CPUs with --gpus 0"
    )
