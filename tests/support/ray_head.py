"""Starts nodes of a Ray cluster by hand, as users do, and ends them with the test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.support.processes import descendants, end

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head node with its job server."""

    address: str
    """The address that nodes join."""
    url: str
    """The URL of the job server."""
    environment: dict[str, str]
    """Environment of the head's processes, and of commands that use the cluster."""

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``ray ARGUMENTS`` as a user of this cluster."""
        return subprocess.run(
            [RAY, *arguments],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.url} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def submit(self, *entrypoint: str, options: tuple[str, ...] = (), env_vars: dict[str, str] | None = None) -> str:
        """Run ``ray job submit --no-wait``; the job's id."""
        runtime_env = json.dumps({"env_vars": env_vars or {}})
        command = ["job", "submit", "--no-wait", "--runtime-env-json", runtime_env, *options, "--", *entrypoint]
        deadline_s = time.monotonic() + 60
        # the head answers a little before it can run jobs
        while "No available agent" in (done := self.ray(*command)).stderr and time.monotonic() < deadline_s:
            pass
        assert done.returncode == 0, done.stdout + done.stderr
        return re.search(r"raysubmit_\w+", done.stdout)[0]  # type: ignore[index]

    def get(self, path: str) -> Any:
        """The job server's answer; None while it is not ready."""
        token = self.environment.get("RAY_AUTH_TOKEN", "")
        request = Request(f"{self.url}/api/{path}", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310
                return json.load(answer)
        except (URLError, OSError):
            return None

    def status(self, job: str) -> str:
        """Status of a submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; empty if a busy server gives none."""
        return str((self.get(f"jobs/{job}") or {}).get("status", ""))

    def wait(self, job: str) -> str:
        """Wait until a submitted job has ended; its status."""
        deadline_s = time.monotonic() + 200
        while (status := self.status(job)) not in ("STOPPED", "SUCCEEDED", "FAILED"):
            assert time.monotonic() < deadline_s, self.log(job)
            time.sleep(0.2)
        return status

    def log(self, job: str) -> str:
        """The output of a submitted job so far."""
        return str((self.get(f"jobs/{job}/logs") or {}).get("logs", ""))


@contextlib.contextmanager
def ray_head(folder: Path, *options: str, **environment: str) -> Iterator[Head]:
    """Run ``ray start --head`` with these options and environment variables; yields when it can run jobs."""
    ports = [free_port(), free_port()]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ("--head", f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1", *options)
    # A file in this folder names the cluster that jobs join; heads with a common folder would overwrite it.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as own["RAY_TMPDIR"]:
        head = Head(
            address=f"127.0.0.1:{ports[0]}",
            url=f"http://127.0.0.1:{ports[1]}",
            environment=os.environ | own | environment,
        )
        with ray_node(head, folder / "head.log", *options) as process:
            deadline_s = time.monotonic() + 90
            while head.get("jobs/") is None:
                assert process.poll() is None and time.monotonic() < deadline_s, (folder / "head.log").read_text()
                time.sleep(0.3)
            yield head


@contextlib.contextmanager
def ray_node(head: Head, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``ray start`` with these options; the node joins ``head`` unless they start a head."""
    joins = () if "--head" in options else (f"--address={head.address}",)
    agent = f"--dashboard-agent-listen-port={free_port()}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", "--block", "--disable-usage-stats", agent, *joins, *options],
            env=head.environment,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        # a graceful end takes half a minute
        end([*descendants(process.pid), process.pid])
        process.wait()


def free_port() -> int:
    """A free TCP port on this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
