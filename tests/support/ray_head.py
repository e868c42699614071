"""Nodes of a Ray cluster started by hand, as people do, each gone when its test is."""

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
    """A head node with its job server. ``environment`` is of its processes, and of whoever may submit to it."""

    address: str
    """For nodes that join."""
    url: str
    """Of the job server."""
    environment: dict[str, str]

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``ray ARGUMENTS`` as a user of this cluster would run it."""
        return subprocess.run(
            [RAY, *arguments],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.url} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def submit(self, *entrypoint: str, options: tuple[str, ...] = (), env_vars: dict[str, str] | None = None) -> str:
        """``ray job submit --no-wait``; the job's id."""
        runtime_env = json.dumps({"env_vars": env_vars or {}})
        command = ["job", "submit", "--no-wait", "--runtime-env-json", runtime_env, *options, "--", *entrypoint]
        deadline_s = time.monotonic() + 60
        # the head answers a little before it has an agent to run jobs with
        while "No available agent" in (done := self.ray(*command)).stderr and time.monotonic() < deadline_s:
            pass
        assert done.returncode == 0, done.stdout + done.stderr
        return re.search(r"raysubmit_\w+", done.stdout)[0]  # type: ignore[index]

    def get(self, path: str) -> Any:
        """What the job server answers; None where it is not there or not ready."""
        token = self.environment.get("RAY_AUTH_TOKEN", "")
        request = Request(f"{self.url}/api/{path}", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310
                return json.load(answer)
        except (URLError, OSError):
            return None

    def status(self, job: str) -> str:
        """Of a submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; empty where a busy server gives none."""
        return str((self.get(f"jobs/{job}") or {}).get("status", ""))

    def wait(self, job: str) -> str:
        """The status of a submitted job once it has ended."""
        deadline_s = time.monotonic() + 200
        while (status := self.status(job)) not in ("STOPPED", "SUCCEEDED", "FAILED"):
            assert time.monotonic() < deadline_s, self.log(job)
            time.sleep(0.2)
        return status

    def log(self, job: str) -> str:
        """What a submitted job has said so far."""
        return str((self.get(f"jobs/{job}/logs") or {}).get("logs", ""))


@contextlib.contextmanager
def ray_head(folder: Path, *options: str, **environment: str) -> Iterator[Head]:
    """``ray start --head`` with these options and variables; it answers and can run jobs."""
    ports = [free_port(), free_port()]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ("--head", f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1", *options)
    # a file there tells jobs which cluster they are on: with a common folder, that of whichever head began last
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
    """``ray start`` with these options, which join ``head`` unless they begin one."""
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
        # its own way to end takes half a minute
        end([*descendants(process.pid), process.pid])
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
