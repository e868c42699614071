"""Counts of scenes in an output, for recipes that detect them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

SCENE_COLUMNS = ("ordinal", "scene", "scene_start_s", "scene_end_s", "range_start_s", "range_end_s")
"""Columns that only the counts of scenes need."""


@dataclass(kw_only=True, slots=True)
class SceneStats:
    """Sums over the windows of scenes. Images, and videos rejected before detection, have no scene.

    Each group of buckets lays windows in all scenes, so scenes and items count once per group.
    """

    scenes_with_first_clip: int = 0
    """Number of scenes whose first window became a clip.

    Scenes with any clip cannot be counted in bounded memory, since an index may hold the clips of a scene far apart.
    """
    clips: int = 0
    cuts: int = 0
    """Number of windows skipped as ``cut``. Each of them is a whole scene."""
    cut_s: float = 0.0
    """Length of these scenes in seconds."""
    items_s: float = 0.0
    """Length in seconds of the items with scenes. An item that is a range of a video has the length of the range."""

    @property
    def cut_share(self) -> float:
        """Part of the items' length that is in no clip because its scene was too short, 0 to 1."""
        return self.cut_s / self.items_s if self.items_s else 0.0

    def add(self, samples: pa.Table, skips: pa.Table, items: pa.Table) -> None:
        """Add the rows of clips, the rows of skips, and the first row of each item in each group."""
        clips, items = (table.filter(pc.field("scene").is_valid()) for table in (samples, items))
        cuts = skips.filter(pc.field("skip_reason") == "cut")
        first_clips = clips.filter(pc.field("start_s") == pc.field("scene_start_s"))
        # clips may begin with the same frame, if frames repeat at the recipe's frame rate
        self.scenes_with_first_clip += (
            first_clips.group_by(["source", "ordinal", "key", "scene", "group"]).aggregate([]).num_rows
        )
        self.clips += clips.num_rows
        self.cuts += cuts.num_rows
        self.cut_s += _sum(pc.subtract(cuts["scene_end_s"], cuts["scene_start_s"]))
        range_lengths = pc.subtract(items["range_end_s"], items["range_start_s"])
        self.items_s += _sum(pc.coalesce(range_lengths, items["src_duration_s"]))


def _sum(seconds: pa.ChunkedArray) -> float:
    return pc.sum(seconds).as_py() or 0.0
