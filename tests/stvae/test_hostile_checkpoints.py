"""Broken and hostile checkpoints: each is one sentence with exit 2, in bounded time and memory, through the real command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.support.hostile_checkpoints import CASES, PTH
from tests.support.paths import ROOT
from tests.test_visible import assert_clean


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcome of every case, from one process that may take 1 GB and 60 s for each."""
    command = [sys.executable, "-m", "tests.support.hostile_checkpoints", str(tmp_path_factory.mktemp("vaes")), *CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {attempt["name"]: attempt for attempt in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("base", ["kl", f"pth/{PTH}"])
def test_the_checkpoint_that_is_changed_is_sound(attempts: dict[str, dict[str, Any]], base: str) -> None:
    assert attempts[f"sound {base}"]["code"] == 0, attempts[f"sound {base}"]["text"]


@pytest.mark.parametrize("name", CASES)
def test_a_broken_checkpoint_is_one_sentence(attempts: dict[str, dict[str, Any]], name: str) -> None:
    attempt = attempts[name]
    *before, last = attempt["text"].splitlines()
    assert attempt["code"] == 2, attempt
    assert re.search(CASES[name][2], last) and last.startswith("error: "), last
    assert "Traceback" not in attempt["text"] and len(last) < 1500 and attempt["seconds"] < 60
    assert all("planned" in line or line.startswith(("fetched videos may take", "encoders ")) for line in before), (
        before
    )
    assert_clean(attempt["text"])
