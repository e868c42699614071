"""Latent sizes, frame rules, chunks and padding of a video VAE, as integer arithmetic. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_HALVINGS = 12
"""Largest number of times that a model halves its input."""


class ShapeError(ValueError):
    """A clip's number of frames, height or width does not fit the VAE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRule:
    """The sizes that fit along one axis: ``start``, ``start + step``, ..., up to ``largest`` if there is a limit."""

    start: int
    step: int
    largest: int | None = None
    or_one: bool = False
    """True if 1 fits too. It is below ``start``."""

    def fits(self, size: int) -> bool:
        """Return True if the axis may have this size."""
        return size > 0 and self.largest_up_to(size) == size

    def largest_up_to(self, size: int) -> int:
        """Return the largest size that fits and is not above ``size``; 0 if there is none."""
        if self.largest is not None:
            size = min(size, self.largest)
        if size < self.start:
            return 1 if self.or_one and size >= 1 else 0
        return size - (size - self.start) % self.step

    def nearest(self, size: int) -> int:
        """Return the size that fits and is nearest; the smaller one if two are equally near."""
        below = self.largest_up_to(size) or (1 if self.or_one else self.start)
        above = below + self.step if below >= self.start else self.start
        return above if self.fits(above) and above - size < size - below else below

    def __str__(self) -> str:
        if self.step == 1:
            text = f"at least {self.start}"
        elif self.start == self.step:
            text = f"a multiple of {self.step}"
        elif self.start < self.step:
            text = f"{self.step}n+{self.start}"
        else:
            text = f"{self.start} + {self.step}n"
        text = f"1 or {text}" if self.or_one else text
        return text if self.largest is None else f"{text}, at most {self.largest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a VAE maps pixels (T, H, W) to latent cells (t, h, w).

    Time is cut into chunks that are encoded independently; the last one may be shorter. Every ``temporal_stride``
    frames of a chunk become one latent frame. If a chunk is not a multiple of the stride, its first latent frame
    covers fewer input frames, because the VAE puts ``pad_frames`` frames of its own in front.
    """

    spatial_stride: int
    temporal_stride: int
    frames: SizeRule
    height: SizeRule
    width: SizeRule
    chunk_frames: int | None = None
    """Frames that are encoded together; None if the whole clip is."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Geometry:
        """Build the geometry from the plain values that ``dataclasses.asdict`` gave."""
        return cls(**(values | {axis: SizeRule(**values[axis]) for axis in ("frames", "height", "width")}))

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the latent (t, h, w) of pixels (T, H, W). Raises ShapeError, naming the nearest size that fits."""
        num_frames, height, width = size
        self.check(size)
        return self.latent_frames(num_frames), height // self.spatial_stride, width // self.spatial_stride

    def latent_frames(self, num_frames: int) -> int:
        """Return the number of latent frames of a clip."""
        return sum(-(-n // self.temporal_stride) for n in self.chunks(num_frames))

    def check(self, size: tuple[int, int, int]) -> None:
        """Raise ShapeError unless pixels (T, H, W) can be encoded."""
        for name, got, rule in zip(
            ("frames", "height", "width"), size, (self.frames, self.height, self.width), strict=True
        ):
            if not rule.fits(got):
                raise ShapeError(f"{name} must be {rule}, got {got}; the nearest that fits is {rule.nearest(got)}")

    def chunks(self, num_frames: int) -> list[int]:
        """Return the number of frames of each chunk, in order: 40 frames in chunks of 17 are [17, 17, 6]."""
        chunk = self.chunk_frames or num_frames
        whole, tail = divmod(num_frames, chunk)
        return [chunk] * whole + ([tail] if tail else [])

    def pad_frames(self, num_frames: int) -> int:
        """Return the number of frames that the VAE puts in front of the first chunk of a clip."""
        return -self.chunks(num_frames)[0] % self.temporal_stride

    def latents_per_chunk(self, num_frames: int) -> int:
        """Return the number of latent frames in each whole chunk of a clip."""
        return -(-(self.chunk_frames or num_frames) // self.temporal_stride)

    def covered_frames(self, num_frames: int) -> list[tuple[int, int]]:
        """Return the input frames [first, last) behind each latent frame. Together they are the whole clip."""
        covered: list[tuple[int, int]] = []
        start = 0
        for chunk in self.chunks(num_frames):
            pad = -chunk % self.temporal_stride
            edges = [start, *range(start + self.temporal_stride - pad, start + chunk + 1, self.temporal_stride)]
            covered += pairwise(edges)
            start += chunk
        return covered

    def largest_whole_length(self, max_frames: int) -> int:
        """Return the most frames up to ``max_frames`` that fit and fill every chunk; 0 if there are none.

        A rule such as 17n+5, which fixes the length of the last chunk, decides alone.
        """
        if self.chunk_frames is not None and self.frames.step == 1:
            return max_frames - max_frames % self.chunk_frames
        return self.frames.largest_up_to(max_frames)


def power_of_two(exponent: int) -> int:
    """Return the stride of a model that halves its input ``exponent`` times. ValueError if no model does."""
    if not 0 <= exponent <= MAX_HALVINGS:
        raise ValueError(f"it halves its input {exponent} times; expected 0 to {MAX_HALVINGS}")
    return 1 << exponent


def multiples(step: int) -> SizeRule:
    """Return the rule of an axis that takes any positive multiple of ``step``."""
    return SizeRule(start=step, step=step)


def plain_geometry(
    spatial_stride: int, temporal_stride: int, frames: SizeRule, chunk_frames: int | None = None
) -> Geometry:
    """Return the usual geometry, whose height and width are multiples of the spatial stride."""
    return Geometry(
        spatial_stride=spatial_stride,
        temporal_stride=temporal_stride,
        frames=frames,
        height=multiples(spatial_stride),
        width=multiples(spatial_stride),
        chunk_frames=chunk_frames,
    )
