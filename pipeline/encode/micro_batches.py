"""Micro-batches through the VAE: always the recipe's shape, and what to do where memory does not suffice."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.encode.device_queue import DeviceQueue
from pipeline.encode.utilization import UnitActivity
from pipeline.output.members import members_of
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.video.decoders import Clip
from pipeline.video.windows import VideoFacts
from stvae.memory import is_out_of_memory, release_memory

if TYPE_CHECKING:  # torch is imported when an encoder is made: the driver needs none
    import torch

    from stvae.vae import VAE

Array = npt.NDArray[np.float32]


class DecodedClip(NamedTuple):
    """A decoded clip on its way into the VAE."""

    item: Item
    facts: VideoFacts
    clip: Clip
    id: str
    """Of its sample."""


Moments = tuple[dict[str, Array], str]
"""Members to store of a clip, and how they were encoded."""


class Prepared(NamedTuple):
    """A micro-batch as the VAE takes it."""

    ids: list[str]
    parts: dict[str, torch.Tensor]
    """Pixels by member, uint8 ``[B,3,T,H,W]`` with B of the recipe, on the VAE's device."""
    noise_seeds: list[int] | None


class MicroBatchEncoder:
    """A VAE and the device it is on, for any number of threads.

    ``submit`` makes the micro-batch ready in the caller's thread, so that it waits beside the device when that is free.
    """

    def __init__(self, vae: VAE, recipe: Recipe) -> None:
        self.vae = vae
        self.recipe = recipe
        self.members = members_of(recipe)
        self.device = DeviceQueue()

    def submit(self, clips: list[DecodedClip], activities: UnitActivity) -> Future[dict[str, Moments | None]]:
        """By id: what to store of each clip of one bucket, None where memory does not suffice."""
        prepared = self._prepare(clips)

        def call() -> dict[str, Moments | None]:
            with activities.encoding():
                return self._encode(prepared)

        return self.device.submit(activities.number, call)

    def _prepare(self, clips: list[DecodedClip]) -> Prepared:
        """The VAE always gets the recipe's number of clips: a convolution's last bits depend on the batch's shape."""
        import torch

        window = clips[0].clip.window
        bucket = window.bucket
        size = self.recipe.clips_per_call[window.filled]
        pixels = np.zeros((size, bucket.num_frames, bucket.height, bucket.width, 3), dtype=np.uint8)
        for row, waiting in zip(pixels, clips, strict=False):
            row[:] = waiting.clip.frames_THWC
        seeds = None
        if self.recipe.spatial_posterior == "sample":
            seeds = [int(clip.id[:15], 16) for clip in clips] + [0] * (size - len(clips))
        parts = {}
        for member in self.members:
            frames = member.frames(bucket.num_frames)
            part = np.ascontiguousarray(pixels[:, frames.start : frames.stop : frames.step])
            parts[member.name] = self.vae.upload(torch.from_numpy(part).permute(0, 4, 1, 2, 3))
        return Prepared([clip.id for clip in clips], parts, seeds)

    def _encode(self, prepared: Prepared) -> dict[str, Moments | None]:
        members: dict[str, tuple[Array, str]] = {}
        for name, part in prepared.parts.items():
            encoded = self._moments(part, len(prepared.ids), prepared.noise_seeds)
            if encoded is None:
                return dict.fromkeys(prepared.ids)
            members[name] = encoded
        channels = self.vae.card.latent_channels if self.recipe.store == "mean" else None
        way = members["latent"][1]
        return {
            id: ({name: moments[i, :channels] for name, (moments, _) in members.items()}, way)
            for i, id in enumerate(prepared.ids)
        }

    def _moments(
        self, pixels_BCTHW: torch.Tensor, count: int, noise_seeds: list[int] | None
    ) -> tuple[Array, str] | None:
        """Moments of the first ``count`` clips, and how: ``whole``; where memory does not suffice clip by clip
        (``single``), then in tiles if the VAE can (``tiled``); None where nothing helps."""
        import torch

        ways = ["whole", *(["single"] if len(pixels_BCTHW) > 1 else []), *(["tiled"] if self.vae.can_tile else [])]
        for way in ways:
            calls = [slice(None)] if way == "whole" else [slice(i, i + 1) for i in range(count)]
            try:
                parts = [
                    self.vae.encode(
                        pixels_BCTHW[call], noise_seeds=noise_seeds and noise_seeds[call], tiled=way == "tiled"
                    ).cpu()
                    for call in calls
                ]
                return torch.cat(parts).numpy(), way
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            release_memory()
        return None
