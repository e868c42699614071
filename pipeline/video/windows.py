"""Selects the windows of a video and the bucket of each. Pure functions of a video's facts and the recipe.

Time zero is the first shown frame. The frame at time t is the shown frame with the greatest presentation time up to t.
Presentation times (pts) are integers in the stream's time base. Frame rates and frame counts of headers are not used.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe
from pipeline.video.placement import CENTER, CropPosition, Placement, choose_bucket, fit_to_bucket
from stvae.geometry import Geometry

ROUNDING_S = Fraction(1, 1000)
"""A frame counts as shown at most this much early, since containers round presentation times to their time base."""
Timeline = tuple[list[int], list[int]]
SEEKABLE_CONTAINERS = ("mov", "matroska")
"""Containers with an index of key frames by which FFmpeg seeks exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """Facts of a video or image, from its packets and its first frame."""

    container: str
    codec: str
    coded_width: int
    coded_height: int
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Coded pixels that the container removes at the top, bottom, left and right."""
    rotation: int
    """Degrees counter-clockwise (0, 90, 180, 270) that turn coded frames upright."""
    mirrored: bool = False
    """True if coded frames are mirrored left to right before they are rotated."""
    sample_aspect: Fraction
    """Width of a coded pixel over its height."""
    time_base: Fraction
    pts: tuple[int, ...]
    """Presentation times of the shown frames, ascending."""
    end_pts: int
    """Presentation time at which the last shown frame ends."""
    is_image: bool
    interlaced: bool = False
    """True if a frame holds two fields from different times."""
    hdr: str | None
    dolby_vision: int | None = None
    """Dolby Vision profile; None if there is none."""
    decord_refusal: str | None
    """Reason why decord would decode this video wrongly; None if it is known to decode it correctly."""
    key_frames: tuple[tuple[int, int], ...] = ()
    """Presentation time of each shown key frame, and the timestamp to seek to for it. Known in decoding children only."""

    scenes: tuple[tuple[int, int], ...] | None = None
    """Positions (start, stop) in ``pts`` of the scenes of an item; None if they were not detected."""

    @property
    def seekable(self) -> bool:
        """True if decoding may start at a key frame. In other containers a seek does not land where it should."""
        return self.container in SEEKABLE_CONTAINERS and not self.is_image

    @property
    def width(self) -> int:
        """Displayed width in square pixels, upright."""
        return self._displayed()[0]

    @property
    def height(self) -> int:
        """Displayed height in square pixels, upright."""
        return self._displayed()[1]

    def _displayed(self) -> tuple[int, int]:
        top, bottom, left, right = self.crop
        width = max(1, round((self.coded_width - left - right) * self.sample_aspect))
        height = self.coded_height - top - bottom
        return (height, width) if self.rotation % 180 else (width, height)

    @property
    def duration_s(self) -> float:
        """Time from the first shown frame to the end of the last."""
        return float((self.end_pts - self.pts[0]) * self.time_base)

    @property
    def fps(self) -> float | None:
        """Mean frames per second; None for an image."""
        return None if self.is_image else self.fps_of(self.pts)

    def fps_of(self, pts: tuple[int, ...]) -> float | None:
        """True frames per second of the frames at ``pts``; None for a single frame of unknown duration.

        A time base of a millisecond blurs the rate of a short window. A rate within 1 % of the whole video's rate is
        therefore taken to be that.
        """
        whole = _rate(self.pts, self.time_base) or _rate((self.pts[0], self.end_pts), self.time_base)
        part = _rate(pts, self.time_base)
        if whole is None or part is None or abs(part / whole - 1) < 0.01:
            part = whole
        return None if part is None else _snap(part)


def _rate(pts: tuple[int, ...], time_base: Fraction) -> Fraction | None:
    if len(pts) < 2 or pts[-1] <= pts[0]:
        return None
    return (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base)


def _snap(rate: Fraction) -> float:
    """The nearest whole or NTSC rate if a measured rate is within 1/2000 of it, else the measured rate."""
    for exact in (Fraction(round(rate)), Fraction(math.ceil(rate) * 1000, 1001)):
        if exact and abs(rate / exact - 1) < Fraction(1, 2000):
            return float(exact)
    return float(rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One of an item's scenes."""

    number: int
    """Number of the scene in its item, from 0."""
    start_s: float
    """Seconds from the first shown frame of the video."""
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive frames of a video in which windows are laid."""

    start: int
    """Position of its first frame in ``VideoFacts.pts``."""
    stop: int
    """Position after its last frame."""
    scene: Scene | None = None
    """The scene that the part is; None if scenes were not detected."""

    def of(self, facts: VideoFacts) -> VideoFacts:
        """The facts of the part alone."""
        if (self.start, self.stop) == (0, len(facts.pts)):
            return facts
        end_pts = facts.pts[self.stop] if self.stop < len(facts.pts) else facts.end_pts
        return replace(facts, pts=facts.pts[self.start : self.stop], end_pts=end_pts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A piece of a video that will be decoded to one clip."""

    index: int
    """Number of the window among those of its item and group, from 0."""
    bucket: Bucket
    """Size of the clip. It has fewer frames than ``filled`` if it is a shortened remainder."""
    filled: Bucket
    """The recipe's bucket that the clip belongs to."""
    pts: tuple[int, ...]
    """Presentation time of the source frame behind each frame of the clip. Repeated frames repeat it."""
    start_s: float
    """Seconds from the first shown frame of the video."""
    end_s: float
    fps: float | None
    """Frames per second of the clip; None for an image."""
    frame_stride: int | None
    """Source frames per clip frame; None if that is not constant."""
    placement: Placement
    scene: Scene | None = None

    @property
    def group(self) -> str:
        """Name of the group of buckets that the window was laid for; empty without groups."""
        return self.filled.group


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A window that the recipe leaves out."""

    index: int
    reason: str
    scene: Scene | None = None
    group: str = ""
    """Name of the group of buckets; empty without groups."""


def select_windows(
    facts: VideoFacts,
    recipe: Recipe,
    geometry: Geometry,
    parts: Sequence[Part] | None = None,
    crop: CropPosition = CENTER,
) -> list[Window | Skip]:
    """Every window of a video in order, group by group, each to be decoded or skipped.

    Every group of buckets lays windows of its own, and has at least one. Windows are laid inside each of ``parts``, which
    is never empty; None stands for the whole video as one part. ``crop`` is where frames are cropped.

    Shapes: a timeline of n clip-rate frames is cut into spans (start, length); a window's ``pts`` has ``length`` entries.
    Invariant: window i of a group has index i.
    Example: 40 frames, a bucket of 17 and ``windows="all"`` give windows at 0 and 17, and a skip for the 6 that remain.
    """
    groups: dict[str, list[Window | Skip]] = {name: [] for name in recipe.bucket_groups}
    if facts.interlaced and recipe.interlaced == "skip":
        return [Skip(index=0, reason="interlaced", group=name) for name in groups]
    for part in parts or [Part(start=0, stop=len(facts.pts))]:
        timeline = _timeline(part.of(facts), recipe.fps)
        for name, selected in groups.items():
            windows = _windows_in(timeline, facts, recipe, geometry, crop, name)
            selected += [replace(w, index=n, scene=part.scene) for n, w in enumerate(windows, len(selected))]
    return [window for selected in groups.values() for window in selected]


def _windows_in(
    timeline: Timeline, facts: VideoFacts, recipe: Recipe, geometry: Geometry, crop: CropPosition, group: str
) -> list[Window | Skip]:
    """The windows of one group in one part, whose timeline is given."""
    pts, stops = timeline
    buckets = recipe.bucket_groups[group]
    bucket = choose_bucket(facts.width, facts.height, len(pts), buckets, recipe, geometry)
    if isinstance(bucket, str):
        return [Skip(index=0, reason=bucket, group=group)]
    selected: list[Window | Skip] = []
    for index, (start, length) in enumerate(_spans(len(pts), bucket.num_frames, recipe)):
        kept = length
        if length < bucket.num_frames:
            kept = geometry.largest_whole_length(length) if recipe.remainder == "shorten" else 0
        window_pts = tuple(pts[start : start + kept])
        if not kept:
            selected.append(Skip(index=index, reason="remainder" if index else "too_short", group=group))
        elif repeats(window_pts) > recipe.max_repeats:
            selected.append(Skip(index=index, reason="repeated_frames", group=group))
        else:
            stop_pts = stops[start + kept - 1]
            selected.append(_window(facts, recipe, index, bucket, window_pts, stop_pts, crop))
    return selected


def repeats(pts: tuple[int, ...]) -> float:
    """Share of frames that repeat the frame before, 0 to 1."""
    return sum(a == b for a, b in pairwise(pts)) / max(1, len(pts) - 1)


def _timeline(facts: VideoFacts, fps: float | None) -> Timeline:
    """The frame that is shown at every tick of the clip's clock, and the time at which each tick ends, as pts.

    Shapes: two lists of n; n is the number of ticks between the first frame and the end of the last.
    Invariant: every entry of the first list is one of ``facts.pts``, and the list ascends.
    Example: frames at 0, 2, 4 that end at 6, with a tick per unit, give [0, 0, 2, 2, 4, 4] and [1, 2, 3, 4, 5, 6].
    """
    if fps is None or facts.is_image:
        return list(facts.pts), [*facts.pts[1:], facts.end_pts]
    rounding = min(facts.time_base / 2, ROUNDING_S)
    first, step = facts.pts[0], 1 / (Fraction(fps).limit_denominator(100_000) * facts.time_base)
    count = max(1, math.ceil((facts.end_pts - first - rounding / facts.time_base) / step))
    early = first + rounding / facts.time_base
    pts = [facts.pts[bisect.bisect_right(facts.pts, math.floor(early + k * step)) - 1] for k in range(count)]
    return pts, [math.floor(early + (k + 1) * step) for k in range(count)]


def _spans(num_frames: int, clip_frames: int, recipe: Recipe) -> list[tuple[int, int]]:
    """(start, length) of every window over a timeline of ``num_frames``. The last may be shorter than a clip."""
    if recipe.windows == "first":
        return [(0, min(num_frames, clip_frames))]
    stride = recipe.stride_frames or clip_frames
    starts = list(range(0, max(1, num_frames - clip_frames + 1), stride))
    spans = [(start, min(clip_frames, num_frames - start)) for start in starts]
    rest = starts[-1] + stride
    if starts[-1] + clip_frames < num_frames and rest < num_frames:
        spans.append((rest, num_frames - rest))
    return spans


def _window(
    facts: VideoFacts,
    recipe: Recipe,
    index: int,
    bucket: Bucket,
    pts: tuple[int, ...],
    stop_pts: int,
    crop: CropPosition,
) -> Window:
    own = replace(bucket, num_frames=len(pts))
    positions = [bisect.bisect_left(facts.pts, p) for p in pts]
    strides = {b - a for a, b in pairwise(positions)}
    fps = None if facts.is_image else recipe.fps or facts.fps_of(pts)
    return Window(
        index=index,
        bucket=own,
        filled=bucket,
        pts=pts,
        start_s=float((pts[0] - facts.pts[0]) * facts.time_base),
        end_s=float((stop_pts - facts.pts[0]) * facts.time_base),
        fps=fps,
        frame_stride=strides.pop() if len(strides) == 1 else None,
        placement=fit_to_bucket(facts.width, facts.height, own, crop),
    )
