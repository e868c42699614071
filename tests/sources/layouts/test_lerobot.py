"""LeRobot folders of version 3: each episode is a range of a file.

lerobot 0.4.4 wrote ``lerobot/`` with ``LeRobotDataset.create``, ``add_frame``, ``save_episode`` and ``finalize``: three
episodes of 10, 15 and 20 frames at 10 frames per second from two cameras. Its data files, and the columns ``stats/...`` of
``meta/episodes``, are left out.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from tests.sources.test_sources import content_of, planned, read_items

FOLDER = Path(__file__).parent / "lerobot"
TASKS = ["pick the cube", "place the cube", "open the drawer"]
RANGES = [(0.0, 1.0), (1.0, 2.5), (2.5, 4.5)]
CAMERAS = ("observation.images.top", "observation.images.wrist")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder that may be changed."""
    return Path(shutil.copytree(FOLDER, tmp_path / "set"))


def test_episodes_are_ranges_of_their_files_with_tasks_as_captions(tmp_path: Path, recipe: Recipe) -> None:
    found = read_items(tmp_path, recipe, str(FOLDER))
    assert [item.ordinal for item in found] == list(range(6))
    assert [item.key for item in found] == [f"{camera}/episode_{n:06d}" for camera in CAMERAS for n in range(3)]
    assert [item.range for item in found] == RANGES * 2 and [item.caption for item in found] == TASKS * 2
    for item in found:
        camera = item.meta["meta_camera"]
        assert item.uri == f"file://{FOLDER}/videos/{camera}/chunk-000/file-000.mp4"
        assert item.facts is not None and item.facts.size == Path(item.location).stat().st_size
    assert [item.meta["meta_episode_index"] for item in found] == [0, 1, 2] * 2


def test_cameras_are_chosen_by_name(tmp_path: Path, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, cameras=CAMERAS[1:])
    found = read_items(tmp_path, recipe, str(FOLDER))
    assert [(item.meta["meta_camera"], item.caption) for item in found] == [(CAMERAS[1], task) for task in TASKS]
    with pytest.raises(ConfigError, match=r"has no camera front; its cameras are observation\.images\.top, obs"):
        planned(tmp_path / "other", dataclasses.replace(recipe, cameras=("front",)), str(FOLDER))


def test_a_folder_without_info_and_tasks_is_read(tmp_path: Path, recipe: Recipe, folder: Path) -> None:
    (folder / "meta" / "info.json").unlink()
    table = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(table).drop_columns(["tasks"]), table)
    found = read_items(tmp_path, recipe, str(folder))
    assert [item.range for item in found] == RANGES * 2 and {item.caption for item in found} == {None}


def test_episodes_without_a_camera_are_left_out(tmp_path: Path, recipe: Recipe, folder: Path) -> None:
    table = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(table).to_pylist()
    for name in rows[1]:
        if CAMERAS[0] in name:
            rows[1][name] = None
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(table)), table)
    found = read_items(tmp_path, recipe, str(folder))
    assert [item.meta["meta_episode_index"] for item in found] == [0, 2, 0, 1, 2]


def test_what_is_not_as_lerobot_writes_it_is_refused(tmp_path: Path, recipe: Recipe, folder: Path) -> None:
    with pytest.raises(ConfigError, match="need --range-unit seconds"):
        planned(tmp_path / "0", dataclasses.replace(recipe, range_unit="frames"), str(folder))
    (folder / "videos" / CAMERAS[1] / "chunk-000" / "file-000.mp4").unlink()
    with pytest.raises(ConfigError, match=r"has no videos/observation\.images\.wrist/.*but episode 0 is in it"):
        planned(tmp_path / "1", recipe, str(folder))
    info = json.loads((folder / "meta" / "info.json").read_text()) | {"codebase_version": "v4.0"}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match=r"of version v4\.0; expected version 3"):
        planned(tmp_path / "2", recipe, str(folder))
    (folder / "meta" / "info.json").write_text("{")
    with pytest.raises(ConfigError, match=r"info\.json' is not a JSON object"):
        planned(tmp_path / "broken", recipe, str(folder))
    (folder / "meta" / "info.json").unlink()
    (folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        planned(tmp_path / "3", recipe, str(folder))
    (folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").unlink()
    with pytest.raises(ConfigError, match="has no Parquet files in meta/episodes"):
        planned(tmp_path / "4", recipe, str(folder))


def test_a_snapshot_of_the_hugging_face_cache_is_read_through_its_links(
    tmp_path: Path, recipe: Recipe, folder: Path
) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0123abcd", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.rename(blobs / str(number)))
    found = read_items(tmp_path, recipe, str(snapshot))
    assert [item.caption for item in found] == TASKS * 2
    expected = (FOLDER / "videos" / CAMERAS[0] / "chunk-000" / "file-000.mp4").read_bytes()
    assert content_of(found[0], recipe) == expected


def test_a_folder_that_changes_behind_the_plan_stops_the_job(tmp_path: Path, recipe: Recipe, folder: Path) -> None:
    planned(tmp_path, recipe, str(folder))
    assert len(planned(tmp_path, recipe, str(folder))[1].units) == 2
    with open(folder / "videos" / CAMERAS[0] / "chunk-000" / "file-000.mp4", "ab") as video:
        video.write(b"more")
    with pytest.raises(SourceChanged, match=r"source file://.*/set was"):
        planned(tmp_path, recipe, str(folder))


def test_a_folder_of_version_2_is_a_folder_of_videos(tmp_path: Path) -> None:
    video = tmp_path / "videos" / "chunk-000" / CAMERAS[0] / "episode_000000.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"x")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["pick"], "length": 1}\n')
    assert [source.format for source in find_sources([str(tmp_path)])] == ["folder"]


def test_the_tasks_of_version_2_are_captions_of_a_manifest(tmp_path: Path, recipe: Recipe) -> None:
    """Version 2.1 has ``meta/episodes.jsonl`` with a line per episode, and a file per episode and camera."""
    lines = [{"episode_index": n, "tasks": [task], "length": 10} for n, task in enumerate(TASKS)]
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pattern = f"videos/chunk-000/{CAMERAS[0]}/episode_{{episode_index:06d}}.mp4"
    recipe = dataclasses.replace(recipe, path_column=pattern, caption_column="tasks", root=str(tmp_path / "set"))
    found = read_items(tmp_path, recipe, str(tmp_path / "set" / "meta" / "episodes.jsonl"))
    assert [(item.uri.rpartition("/")[2], item.caption) for item in found] == [
        (f"episode_{n:06d}.mp4", task) for n, task in enumerate(TASKS)
    ]
    assert found[0].uri == f"file://{tmp_path}/set/videos/chunk-000/{CAMERAS[0]}/episode_000000.mp4"
