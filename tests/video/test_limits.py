"""Decoding under the limits that a shell or a login node sets before the job starts."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clips_maker import make_clip
from tests.support.paths import ROOT

PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24
"""From linux/prctl.h and linux/capability.h."""
DECODE = """
import sys
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.windows import select_windows
from stvae.geometry import multiples, plain_geometry

recipe = Recipe(vae="x", buckets=(Bucket(17, 64, 112),))
decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
geometry = plain_geometry(8, 4, multiples(1), chunk_frames=17)
with open(sys.argv[1], "rb") as file:
    for _, outcome in decoders.clips(file.fileno(), lambda facts: select_windows(facts, recipe, geometry)):
        print(type(outcome).__name__, getattr(outcome, "reject", ""))
decoders.close()
"""


def _lose_right_to_raise_limits() -> None:
    """Take the capability to raise hard limits from the next program, also if it runs as root."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0)


@pytest.mark.parametrize("limit", ["ulimit -t 100000", "ulimit -v 64000000", "ulimit -t 100000; ulimit -v 64000000"])
def test_hard_limits_of_the_shell_do_not_reject_videos(tmp_path: Path, limit: str) -> None:
    path = make_clip(tmp_path / "clip.mp4", 20)
    command = ["bash", "-c", f'{limit}; exec "$0" -c "$1" "$2"', sys.executable, DECODE, str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=_lose_right_to_raise_limits,
    )
    assert done.stdout.split() == ["Clip"], (done.stdout, done.stderr)
