"""A dataset with every kind of source and several faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_clip, make_image


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, two tars (one damaged) and a manifest: good videos of several shapes and rates, a picture, broken files."""
    folder = tmp_path_factory.mktemp("dataset")
    make_clip(folder / "f" / "wide.mp4", 76, seed=1)
    make_clip(folder / "f" / "slow.mp4", 20, fps=12, seed=2)
    make_clip(folder / "f" / "square.mkv", 40, size=(64, 64), seed=3)
    make_clip(folder / "f" / "small.mp4", 40, size=(16, 16))
    make_image(folder / "f" / "picture.png")
    (folder / "f" / "empty.mp4").write_bytes(b"")
    (folder / "f" / "wide.txt").write_text("a caption " * 40)
    (folder / "f" / "square.json").write_text(json.dumps({"score": 0.5, "about": "é" * 300}))
    whole = (folder / "f" / "wide.mp4").read_bytes()
    square = (folder / "f" / "square.mkv").read_bytes()
    (folder / "t").mkdir()
    members = [
        ("a.mp4", whole),
        ("a.txt", b"in a tar"),
        ("b.mkv", square),
        ("c.txt", b"alone"),
        ("d.mp4", whole[:3000]),
    ]
    write_tar(folder / "t" / "good.tar", members)
    cut = write_tar(folder / "t" / "cut.tar", [("x.mp4", whole), ("y.mkv", square)]).read_bytes()
    (folder / "t" / "cut.tar").write_bytes(cut[: len(whole) + 3000])
    rows = [
        {"path": f"f/{name}", "caption": name, "n": i} for i, name in enumerate(["wide.mp4", "square.mkv", "gone.mp4"])
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
