"""Micro-batches through the VAE. They always have the recipe's shape; if memory runs out, smaller calls are tried.

Shapes: B clips of the recipe's micro-batch, 3 colors, T frames, H x W pixels; C latent channels, t x h x w latent grid.
"""

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
from pipeline.video.outcomes import Clip
from pipeline.video.windows import VideoFacts
from stvae.memory import is_out_of_memory, may_be_out_of_memory, release_memory

if TYPE_CHECKING:  # torch is imported when an encoder is made; the driver needs none
    import torch

    from stvae.vae import VAE

Array = npt.NDArray[np.float32]


class DecodedClip(NamedTuple):
    """A decoded clip that waits for the VAE."""

    item: Item
    facts: VideoFacts
    clip: Clip
    id: str
    """Id of its sample."""


class EncodedClip(NamedTuple):
    """The VAE's result for one clip."""

    members: dict[str, Array]
    """Float32 arrays to store by member: ``[2C,t,h,w]`` moments, or ``[C,t,h,w]`` means if the recipe stores only those."""
    encode_path: str
    """How it was encoded: ``whole``, ``single`` or ``tiled``."""


EncodedClips = dict[str, EncodedClip | None]
"""Results by sample id; None for a clip that does not fit the memory."""


class PreparedBatch(NamedTuple):
    """A micro-batch on the VAE's device, or in host memory if the device has no room for it yet."""

    ids: list[str]
    """Sample ids of its clips. Rows of the tensors beyond these are blank."""
    pixels: dict[str, torch.Tensor]
    """uint8 ``[B,3,T,H,W]`` by member, with T frames of that member."""
    noise_seeds: list[int] | None
    """A seed per row, if the recipe samples the spatial posterior."""


class MicroBatchEncoder:
    """A VAE and the queue of calls to it. Any number of threads may use it."""

    def __init__(self, vae: VAE, recipe: Recipe) -> None:
        self.vae = vae
        self.recipe = recipe
        self.members = members_of(recipe)
        self.queue = DeviceQueue()

    def submit(self, clips: list[DecodedClip], activities: UnitActivity) -> Future[EncodedClips]:
        """Encode clips of one size, at most the micro-batch of their buckets, which is the same for all.

        The micro-batch is prepared and uploaded in the caller's thread, so that it is there when the device gets free.
        """
        batch = self._prepare(clips)

        def call() -> EncodedClips:
            with activities.encoding():
                return self._encode(batch)

        return self.queue.submit(activities.number, call)

    def _prepare(self, clips: list[DecodedClip]) -> PreparedBatch:
        """Copy the clips into tensors and upload them.

        Shapes: ``pixels_BTHWC`` is uint8 ``[B,T,H,W,3]``; uploads are ``[B,3,T,H,W]``.
        Invariant: B is the recipe's number even for fewer clips, because the last bits of a convolution depend on it.
        Example: 3 clips of 256x256x17 with B = 4 give ``[4,3,17,256,256]``, whose row 3 is black.
        """
        import torch

        window = clips[0].clip.window
        bucket = window.bucket
        size = self.recipe.clips_per_call[window.filled]
        pixels_BTHWC = np.zeros((size, bucket.num_frames, bucket.height, bucket.width, 3), dtype=np.uint8)
        assert len(clips) <= size, "more clips than the recipe's micro-batch"
        for row, decoded in zip(pixels_BTHWC, clips, strict=False):
            row[:] = decoded.clip.frames_THWC
        seeds = None
        if self.recipe.spatial_posterior == "sample":
            seeds = [int(decoded.id[:15], 16) for decoded in clips] + [0] * (size - len(clips))
        uploads = {}
        for member in self.members:
            frames = member.frames(bucket.num_frames)
            x_BTHWC = np.ascontiguousarray(pixels_BTHWC[:, frames.start : frames.stop : frames.step])
            uploads[member.name] = self._upload(torch.from_numpy(x_BTHWC).permute(0, 4, 1, 2, 3))
        return PreparedBatch([decoded.id for decoded in clips], uploads, seeds)

    def _upload(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Upload pixels. If there is no memory for them beside the micro-batch in the VAE, ``encode`` uploads them later."""
        try:
            return self.vae.upload(x_BCTHW)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return x_BCTHW

    def _encode(self, batch: PreparedBatch) -> EncodedClips:
        moments: dict[str, Array] = {}
        encode_paths: dict[str, str] = {}
        for name, x_BCTHW in batch.pixels.items():
            encoded = self._moments(x_BCTHW, len(batch.ids), batch.noise_seeds)
            if encoded is None:
                return dict.fromkeys(batch.ids)
            moments[name], encode_paths[name] = encoded
        channels = self.vae.card.latent_channels if self.recipe.store != "moments" else None
        return {
            id: EncodedClip({name: m[row, :channels] for name, m in moments.items()}, encode_paths["latent"])
            for row, id in enumerate(batch.ids)
        }

    def _moments(
        self, x_BCTHW: torch.Tensor, num_clips: int, noise_seeds: list[int] | None
    ) -> tuple[Array, str] | None:
        """Moments ``[num_clips or B,2C,t,h,w]`` of the first ``num_clips`` rows, and how they were encoded.

        If memory runs out: clip by clip (``single``), then in tiles if the VAE can (``tiled``), then None. An error that
        looks like it, but also comes from the last of these, is raised.
        """
        import torch

        failure: BaseException

        paths = ["whole", *(["single"] if len(x_BCTHW) > 1 else []), *(["tiled"] if self.vae.can_tile else [])]
        for path in paths:
            calls = [slice(None)] if path == "whole" else [slice(i, i + 1) for i in range(num_clips)]
            try:
                parts = [
                    self.vae.encode(
                        x_BCTHW[call], noise_seeds=noise_seeds and noise_seeds[call], tiled=path == "tiled"
                    ).cpu()
                    for call in calls
                ]
                return torch.cat(parts).numpy(), path
            except (RuntimeError, MemoryError) as error:
                if not may_be_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # which would keep the memory
            release_memory()
        if not is_out_of_memory(failure):
            raise failure
        return None
