"""LeRobot folders of version 3: episodes are ranges of video files that hold many of them.

``meta/episodes`` has Parquet files with a row per episode. For every camera a row names the file and the seconds in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.file_table import File, Files
from pipeline.sources.item import MEDIA_SUFFIXES, Item
from pipeline.sources.layouts.captions import set_caption
from pipeline.sources.manifest.parquet_pages import ManifestFile
from pipeline.sources.manifest.parquet_rows import parquet_rows
from pipeline.sources.retrying_file import is_folder, open_retrying, read_whole, retry_call
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, check_facts_as_planned, new_unit
from pipeline.storage.listing import iter_files
from pipeline.storage.local.links import LinkPolicy
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, canonical, open_filesystem, scheme_of, suffix_of

EPISODES = "meta/episodes"
INFO = "meta/info.json"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Pattern of the videos' paths if ``meta/info.json`` has none."""
PREFIX, SUFFIX = "videos/", "/from_timestamp"
"""Parts of a column's name around the name of a camera."""
COLUMNS = pa.schema([("episode_index", pa.int64()), ("camera", pa.string())])
"""User columns of the items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """An episode as one camera has recorded it."""

    path: str
    start_s: float
    end_s: float
    camera: str
    episode: int
    tasks: list[str]


class LeRobotFormat(SourceFormat):
    """A LeRobot folder. An item per episode and camera, in the order of the files and of time in them."""

    name = "lerobot"

    def recognizes(self, url: str) -> bool:
        """Return whether ``url`` is a folder with ``meta/episodes``. Asks the store."""
        if suffix_of(canonical(url)) in MEDIA_SUFFIXES or scheme_of(url) in HTTP_SCHEMES:
            return False
        return is_folder(url, EPISODES)

    def open(self, name: str, url: str, parts: list[str]) -> Source:
        """The folder's videos and the files that describe them."""
        files = _list_files(url)
        digest = hashlib.sha256(json.dumps(files.rows.to_pylist()).encode()).hexdigest()
        return Source(
            name=name, format=self.name, url=url, files=files, facts=FileFacts(size=files.size_bytes, etag=digest)
        )

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut the episodes of the chosen cameras into units. The episodes are written to the plan."""
        if recipe.range_unit != "seconds":
            raise ConfigError(f"'{canonical(source.url)}' is a LeRobot folder, whose ranges need --range-unit seconds")
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        clips = sorted(read_clips(source, recipe.cameras), key=lambda clip: (clip.camera, clip.path, clip.start_s))
        videos = {file.path: file.facts for file in source.files}
        units = []
        for start in range(0, len(clips), recipe.unit_clips):
            part = clips[start : start + recipe.unit_clips]
            paths = dict.fromkeys(clip.path for clip in part)
            units.append(
                new_unit(
                    source,
                    generation,
                    start=start,
                    stop=start + len(part),
                    header=json.dumps([[getattr(clip, name) for name in Clip.__slots__] for clip in part]),
                    files=Files.of((path, videos[path]) for path in paths),
                )
            )
        return NewUnits(units=units, columns=COLUMNS)

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per episode and camera, captioned by the tasks of the episode."""
        facts = {file.path: file.facts for file in unit.files}
        for ordinal, values in enumerate(json.loads(unit.header), unit.start):
            clip = Clip(**dict(zip(Clip.__slots__, values, strict=True)))
            location = f"{url.rstrip('/')}/{clip.path}"
            item = Item(
                ordinal=ordinal,
                key=f"{clip.camera}/episode_{clip.episode:06d}",
                uri=canonical(location),
                facts=facts[clip.path],
                location=location,
                range=(clip.start_s, clip.end_s),
                meta={"meta_episode_index": clip.episode, "meta_camera": clip.camera},
            )
            set_caption(item, clip.tasks)
            yield item

    def num_items(self, unit: Unit) -> int:
        """Number of episodes in the unit, counted once per camera."""
        return len(unit.ordinals)

    def cost(self, unit: Unit) -> int:
        """Number of items: a file holds episodes of other units too."""
        return self.num_items(unit)


def read_clips(source: Source, cameras: tuple[str, ...]) -> Iterator[Clip]:
    """Yield every episode of the given cameras, or of all. ConfigError if the folder is not as LeRobot writes it."""
    paths = {file.path: file for file in source.files}
    template = _video_path(source.url, paths.get(INFO))
    tables = [file for path, file in paths.items() if path.startswith(f"{EPISODES}/") and path.endswith(".parquet")]
    if not tables:
        raise ConfigError(f"'{canonical(source.url)}' has no Parquet files in {EPISODES}")
    for file in tables:
        for row in _episodes(source.url, file):
            recorded = sorted(name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in row if name.endswith(SUFFIX))
            unknown = set(cameras) - set(recorded)
            if unknown or not recorded:
                raise ConfigError(
                    f"'{canonical(source.url)}' has {'no camera ' + min(unknown) if unknown else 'no videos'}; "
                    f"its cameras are {', '.join(recorded) or 'none'}"
                )
            for camera in cameras or recorded:
                clip = _clip(row, camera, template)
                if clip is not None and clip.path not in paths:
                    raise ConfigError(
                        f"'{canonical(source.url)}' has no {clip.path}, but episode {clip.episode} is in it"
                    )
                if clip is not None:
                    yield clip


def _clip(row: dict[str, Any], camera: str, template: str) -> Clip | None:
    """The episode of a row as a camera has recorded it; None if it has not."""
    chunk, file, start_s, end_s = (
        row.get(f"{PREFIX}{camera}/{name}") for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    )
    if chunk is None or file is None or start_s is None or end_s is None:
        return None
    return Clip(
        path=template.format(video_key=camera, chunk_index=chunk, file_index=file),
        start_s=start_s,
        end_s=end_s,
        camera=camera,
        episode=row["episode_index"],
        tasks=list(row.get("tasks") or []),
    )


def _episodes(url: str, file: File) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of ``meta/episodes``, without the statistics of the episodes."""
    location = f"{url.rstrip('/')}/{file.path}"
    try:
        with open_retrying(location, file.facts.size) as f:
            parquet = ManifestFile(f)
            names = [name for name in parquet.schema_arrow.names if name.startswith(PREFIX)]
            wanted = [name for name in ("episode_index", "tasks") if name in parquet.schema_arrow.names]
            yield from parquet_rows(parquet, 0, parquet.metadata.num_rows, [*wanted, *names], location)
    except pa.ArrowException:
        raise ConfigError(f"'{canonical(location)}' cannot be read as Parquet") from None


def _video_path(url: str, info: File | None) -> str:
    """The pattern of the videos' paths. ConfigError if the folder is of an earlier version of LeRobot."""
    if info is None:
        return VIDEO_PATH
    try:
        values = json.loads(read_whole(f"{url.rstrip('/')}/{INFO}", info.facts.size))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"'{canonical(url)}/{INFO}' is not a JSON object")
    version = str(values.get("codebase_version", "v3.0"))
    if not version.startswith("v3"):
        raise ConfigError(
            f"'{canonical(url)}' is a LeRobot folder of version {version}; expected version 3: convert it with LeRobot's "
            "convert_dataset_v21_to_v30, or give its folder videos"
        )
    return str(values.get("video_path") or VIDEO_PATH)


def _list_files(url: str) -> Files:
    """The videos of a LeRobot folder and the files that describe its episodes."""
    fs, root = open_filesystem(url)
    links = LinkPolicy(root) if scheme_of(url) == "file" else None  # a snapshot in a Hugging Face cache has only links
    found = iter_files(fs, root, partial(retry_call, url), links)
    return Files.of(
        (path, FileFacts.of(info)) for path, info in found if path == INFO or path.startswith((f"{EPISODES}/", PREFIX))
    )
