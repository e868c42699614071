"""A made-up Hugging Face Hub, ours, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stores.server import StoreServer, free_ports, listens, require, running

REPOSITORY = "datasets/acme/drill"


@contextmanager
def made_up_hub(folder: Path) -> Iterator[StoreServer]:
    """``tests/support/made_up_hub.py`` with an empty repository."""
    require("huggingface_hub", "pip install huggingface_hub")
    (folder / "data").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.support.made_up_hub", str(folder / "data")]
    command += ["--repo", REPOSITORY, "--port", str(port)]
    with running(command, folder / "log", lambda: listens(port), {"PYTHONPATH": str(ROOT)}) as pid:
        endpoint = f"http://127.0.0.1:{port}"
        settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_drill", "HF_HUB_DISABLE_XET": "1"}
        yield StoreServer(
            name="made-up Hub",
            version="ours",
            url=f"hf://{REPOSITORY}",
            endpoint=endpoint,
            log=folder / "log",
            settings=settings,
            pids=[pid],
        )
