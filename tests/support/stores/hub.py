"""A made-up Hugging Face Hub, ours, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tests.support.paths import ROOT
from tests.support.stores.server import StoreServer, free_ports, listens, require, running

URL_TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
REPOSITORY = "datasets/acme/drill"


@contextmanager
def made_up_hub(folder: Path) -> Iterator[StoreServer]:
    """``tests/support/made_up_hub.py`` with an empty repository."""
    require("huggingface_hub", "pip install huggingface_hub")
    (folder / "data").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.support.made_up_hub", str(folder / "data")]
    command += ["--repo", REPOSITORY, "--port", str(port)]
    endpoint = f"http://127.0.0.1:{port}"
    with (
        running(command, folder / "log", lambda: listens(port), {"PYTHONPATH": str(ROOT)}) as pid,
        # huggingface_hub reads HF_ENDPOINT when it is imported
        mock.patch("huggingface_hub.constants.ENDPOINT", endpoint),
        mock.patch("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + URL_TEMPLATE),
    ):
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
