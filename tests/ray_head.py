"""A Ray head node that was started by hand, as on a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def ray_head(log: Path, answers: Callable[[], bool], *options: str) -> Iterator[None]:
    """A head with these options of ``ray start``, from when it ``answers``."""
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", *options],
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        deadline_s = time.monotonic() + 120
        while not answers():
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        # its own way to end takes half a minute; the children are this test's as much as the head is
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [*map(int, children), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
