"""Latent sizes, frame rules, chunks and padding of a video VAE, as integer arithmetic. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


class ShapeError(ValueError):
    """A clip's frames, height or width do not fit the codec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a codec maps pixels (T, H, W) to latent cells (t, h, w).

    Time is cut into chunks of ``chunk_frames`` frames which are encoded independently; the last chunk may be shorter.
    Every ``temporal_stride`` frames of a chunk become one latent frame, after zero frames are put in front of the
    chunk to fill its first group.
    """

    spatial_stride: int
    temporal_stride: int
    chunk_frames: int
    """Frames encoded together; also the frame rule: a clip of n whole chunks wastes nothing."""

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent (t, h, w) of pixels (T, H, W). Raises ShapeError, naming the nearest size that fits."""
        num_frames, height, width = size
        self.check(size)
        t = sum(-(-n // self.temporal_stride) for n in self.chunks(num_frames))
        return t, height // self.spatial_stride, width // self.spatial_stride

    def check(self, size: tuple[int, int, int]) -> None:
        """Raise ShapeError unless pixels (T, H, W) can be encoded."""
        num_frames, height, width = size
        if num_frames < 1:
            raise ShapeError(f"a clip needs at least 1 frame, got {num_frames}")
        for name, pixels in (("height", height), ("width", width)):
            if pixels < self.spatial_stride or pixels % self.spatial_stride:
                nearest = max(1, round(pixels / self.spatial_stride)) * self.spatial_stride
                raise ShapeError(
                    f"{name} must be a multiple of {self.spatial_stride}, got {pixels}; the nearest that fits is {nearest}"
                )

    def chunks(self, num_frames: int) -> list[int]:
        """Frames of each chunk, in order: 40 frames in chunks of 17 are [17, 17, 6]."""
        whole, tail = divmod(num_frames, self.chunk_frames)
        return [self.chunk_frames] * whole + ([tail] if tail else [])

    def pad_frames(self, num_frames: int) -> int:
        """Zero frames put in front of the first chunk of a clip."""
        return -min(num_frames, self.chunk_frames) % self.temporal_stride

    @property
    def latents_per_chunk(self) -> int:
        """Latent frames of one whole chunk."""
        return -(-self.chunk_frames // self.temporal_stride)

    def rule_frames(self, max_frames: int) -> int:
        """The most frames up to ``max_frames`` that obey the frame rule (whole chunks); 0 if there are none."""
        return max_frames - max_frames % self.chunk_frames
