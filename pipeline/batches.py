"""Micro-batches through the codec: always the recipe's shape, and what to do where memory does not suffice."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clips import VideoFacts
from pipeline.decode import Clip
from pipeline.items import Item
from pipeline.recipe import Recipe
from stvae.memory import is_out_of_memory, release_memory

if TYPE_CHECKING:  # torch is imported when an encoder is made: the driver needs none
    from stvae.codec import Codec

Array = npt.NDArray[np.float32]


class Waiting(NamedTuple):
    """A decoded clip on its way into the codec."""

    item: Item
    facts: VideoFacts
    clip: Clip
    id: str
    """Of its sample."""


Moments = tuple[dict[str, Array], str]
"""Members to store of a clip, and how they were encoded."""


class BatchEncoder:
    """A codec and the lock round its device; ``encode`` may be called by any number of threads."""

    def __init__(self, codec: Codec, recipe: Recipe) -> None:
        self.codec = codec
        self.recipe = recipe
        self.device = threading.Lock()

    def encode(self, clips: list[Waiting]) -> tuple[dict[str, Moments | None], float]:
        """By id: what to store of each clip of one bucket (None where memory does not suffice); and seconds in the codec.

        The codec always gets the recipe's number of clips, since a convolution's last bits depend on the batch's shape.
        """
        window = clips[0].clip.window
        bucket = window.bucket
        size = self.recipe.clips_per_call[window.filled]
        pixels = np.zeros((size, bucket.num_frames, bucket.height, bucket.width, 3), dtype=np.uint8)
        for row, waiting in zip(pixels, clips, strict=False):
            row[:] = waiting.clip.frames_THWC
        seeds = None
        if self.recipe.spatial_posterior == "sample":
            seeds = [int(clip.id[:15], 16) for clip in clips] + [0] * (size - len(clips))
        wanted = {"latent": pixels} | {
            name: np.ascontiguousarray(pixels[:, [place]]) for name, place in self.recipe.conditioning_frames.items()
        }
        members: dict[str, tuple[Array, str]] = {}
        total_s = 0.0
        for name, part in wanted.items():
            encoded, encode_s = self._moments(part, len(clips), seeds)
            total_s += encode_s
            if encoded is None:
                return dict.fromkeys([clip.id for clip in clips]), total_s
            members[name] = encoded
        channels = self.codec.card.latent_channels if self.recipe.store == "mean" else None
        way = members["latent"][1]
        latents = [{name: part[i, :channels] for name, (part, _) in members.items()} for i in range(len(clips))]
        return {clip.id: (latent, way) for clip, latent in zip(clips, latents, strict=True)}, total_s

    def _moments(
        self, pixels_BTHWC: npt.NDArray[np.uint8], count: int, seeds: list[int] | None
    ) -> tuple[tuple[Array, str] | None, float]:
        """Moments of the first ``count`` clips, and how: ``whole``; where memory does not suffice clip by clip
        (``single``), then in tiles if the codec can (``tiled``); None where nothing helps. And seconds in the codec."""
        import torch

        on_device = self.codec.upload(torch.from_numpy(pixels_BTHWC).permute(0, 4, 1, 2, 3))
        ways = ["whole", *(["single"] if len(pixels_BTHWC) > 1 else []), *(["tiled"] if self.codec.can_tile else [])]
        with self.device:
            started_s = time.monotonic()
            for way in ways:
                calls = [slice(None)] if way == "whole" else [slice(i, i + 1) for i in range(count)]
                try:
                    parts = [
                        self.codec.encode(
                            on_device[call], noise_seeds=seeds and seeds[call], tiled=way == "tiled"
                        ).cpu()
                        for call in calls
                    ]
                    return (torch.cat(parts).numpy(), way), time.monotonic() - started_s
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                release_memory()
            return None, time.monotonic() - started_s
