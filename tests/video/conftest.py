"""Decoding servers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Outcome
from pipeline.video.windows import VideoFacts, select_windows
from stvae.geometry import multiples, plain_geometry

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "keep": {"interlaced": "keep", "dolby_vision": "keep"},
    "deinterlace": {"interlaced": "deinterlace", "hdr": "tonemap"},
}
Decode = Callable[..., tuple[VideoFacts | None, list[Outcome]]]


@pytest.fixture(scope="module")
def policies() -> Iterator[dict[str, tuple[Recipe, Decoders]]]:
    """A recipe and its decoders for each policy, started when it is first used."""
    started: dict[str, tuple[Recipe, Decoders]] = {}
    yield started
    for _, decoders in started.values():
        decoders.close()


@pytest.fixture
def read(policies: dict[str, tuple[Recipe, Decoders]]) -> Decode:
    """The facts of a file and the outcomes of all windows of 17 frames, or of one frame for an image."""

    def run(
        path: Path, size: tuple[int, int] = (64, 112), policy: str = "default"
    ) -> tuple[VideoFacts | None, list[Outcome]]:
        recipe = Recipe(vae="x", buckets=(Bucket(17, *size), Bucket(1, *size)), windows="all", **POLICIES[policy])
        if policy not in policies:
            policies[policy] = recipe, Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
        with path.open("rb") as file:
            found = list(
                policies[policy][1].clips(file.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
            )
        return found[0][0], [outcome for _, outcome in found]

    return run
