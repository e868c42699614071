"""The frames of a video that an item's range names, and the windows in them. Pure functions of a video's facts.

Ranges count from the first shown frame, in seconds or in frames. A frame belongs to a range if it begins in it.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pipeline.errors import Rejected
from pipeline.recipe import Recipe
from pipeline.video.outcomes import RejectedWindow
from pipeline.video.placement import CENTER, CropPosition
from pipeline.video.windows import ROUNDING_S, Part, Scene, Skip, VideoFacts, Window, select_windows
from stvae.geometry import Geometry

Range = tuple[float, float | None]
"""Start and end; an end of None is the end of the video."""
RangeUnit = Literal["seconds", "frames"]


def positions_in_range(facts: VideoFacts, item_range: Range | None, unit: RangeUnit) -> tuple[int, int]:
    """The positions (start, stop) in ``facts.pts`` of the frames in a range; those of all frames for None.

    Raises Rejected if there is none. A frame may begin ``ROUNDING_S`` before its range, since manifests round times.
    """
    if item_range is None:
        return 0, len(facts.pts)
    start, end = item_range
    if unit == "frames":
        found = math.ceil(start), len(facts.pts) if end is None else min(len(facts.pts), math.ceil(end))
    else:
        found = _position(facts, start), len(facts.pts) if end is None else _position(facts, end)
    if start < 0 or found[0] >= found[1]:
        raise Rejected(
            "probe",
            "bad_range",
            f"no frame lies between {unit} {start:g} and {'the end' if end is None else f'{end:g}'}; "
            f"the video has {len(facts.pts)} frames and lasts {facts.duration_s:g} s",
        )
    return found


def range_seconds(facts: VideoFacts | None, item_range: Range, unit: RangeUnit) -> tuple[float | None, float | None]:
    """Start and end of a range in seconds, inside the video; None where they depend on a video that is not known."""
    start, end = item_range
    if unit == "frames":
        if facts is None:
            return None, None
        return _begin_s(facts, start), facts.duration_s if end is None else _begin_s(facts, end)
    if facts is None:
        return start, end
    return start, facts.duration_s if end is None else min(end, facts.duration_s)


def select_in_range(
    facts: VideoFacts, item_range: Range | None, recipe: Recipe, geometry: Geometry, crop: CropPosition = CENTER
) -> list[Window | Skip]:
    """Every window of an item in order, group by group. ``item_range`` is the item's; None for a whole video."""
    start, stop = positions_in_range(facts, item_range, recipe.range_unit)
    if facts.scenes is None:
        return select_windows(facts, recipe, geometry, [Part(start=start, stop=stop)], crop)
    groups: dict[str, list[Window | Skip]] = {name: [] for name in recipe.bucket_groups}
    for number, (start, stop) in enumerate(facts.scenes):
        scene = Scene(number=number, start_s=_begin_s(facts, start), end_s=_begin_s(facts, stop))
        windows = select_windows(facts, recipe, geometry, [Part(start=start, stop=stop, scene=scene)], crop)
        for group, selected in groups.items():
            of_group = _windows_or_cut([w for w in windows if w.group == group], scene, facts, recipe)
            selected += [replace(window, index=n) for n, window in enumerate(of_group, len(selected))]
    return [window for selected in groups.values() for window in selected]


def in_decoding_order(
    selected: Sequence[Sequence[Window | Skip | RejectedWindow]],
) -> list[tuple[int, Window | Skip | RejectedWindow]]:
    """The windows of several ranges by the time of their last frame, each with the number of its range.

    Damage then rejects no window that ends before it. The windows of one group of buckets in one range keep their order: a
    skip follows the window before it.
    """
    keyed = []
    for number, windows in enumerate(selected):
        ends: defaultdict[str, float] = defaultdict(lambda: -math.inf)
        for position, window in enumerate(windows):
            if isinstance(window, Window):
                ends[window.group] = max(ends[window.group], window.pts[-1])
            keyed.append(((ends[window.group], number, position), window))
    keyed.sort(key=lambda pair: pair[0])
    return [(key[1], window) for key, window in keyed]


def _windows_or_cut(
    windows: list[Window | Skip], scene: Scene, facts: VideoFacts, recipe: Recipe
) -> list[Window | Skip]:
    """The windows of one group in a scene; one skip ``cut`` for a scene among others that is too short for any."""
    is_only_scene = len(facts.scenes or ()) == 1
    has_none = isinstance(windows[0], Skip) and windows[0].reason == "too_short"
    if is_only_scene or not (has_none or scene.end_s - scene.start_s < recipe.min_scene_s):
        return windows
    return [Skip(index=0, reason="cut", scene=scene, group=windows[0].group)]


def _position(facts: VideoFacts, time_s: float) -> int:
    """Position of the first frame that begins at a time or later."""
    if math.isinf(time_s) or math.isnan(time_s):
        return len(facts.pts)
    exact_s = Fraction(round(time_s * 1_000_000), 1_000_000)
    earliest = facts.pts[0] + math.ceil((exact_s - ROUNDING_S) / facts.time_base)
    return bisect.bisect_left(facts.pts, earliest)


def _begin_s(facts: VideoFacts, frame: float) -> float:
    """Seconds at which a frame begins; the end of the video for one behind its last."""
    position = max(0, math.ceil(frame))
    if position >= len(facts.pts):
        return facts.duration_s
    return float((facts.pts[position] - facts.pts[0]) * facts.time_base)
