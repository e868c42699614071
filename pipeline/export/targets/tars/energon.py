"""Tars for Megatron-Energon, as the task encoder of Megatron-Bridge reads them for Wan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets.pickles import pickle_tensor
from pipeline.export.targets.shapes import count_buckets
from pipeline.export.targets.tars.energon_meta import IndexedTar, write_meta, write_tar_index
from pipeline.export.targets.tars.sample_tar import SampleTar
from pipeline.export.targets.tensor_files import tensor_file
from pipeline.loader import LatentDataset
from pipeline.progress.formatting import number

PATCH = 2
"""Height and width in latents of the patches into which the task encoder cuts them."""


class EnergonTarget(ExportTarget):
    """A tar per unit with ``ID.pth``, ``ID.pickle`` and ``ID.json``, and ``.nv-meta`` as ``energon prepare`` makes it.

    Latents are normalized, float16 ``[C,t,h,w]``. Text is a pickled tensor ``[S,D]`` without padding, in the type of the
    layer: the reader pads it.
    """

    name: ClassVar[str] = "energon"
    reader: ClassVar[str] = "Megatron-Energon, and Megatron-Bridge for Wan"
    text: ClassVar[Literal["none", "may", "must"]] = "must"
    vae_classes: ClassVar[tuple[str, ...]] = ("AutoencoderKLWan",)

    def notes(self, data: LatentDataset) -> list[str]:
        """Say which samples the task encoder cannot cut into patches, and that there is no validation split."""
        notes = super().notes(data)
        stride = data.card.geometry.spatial_stride * PATCH
        odd = sum(count for (_, *size), count in count_buckets(data).items() if any(pixels % stride for pixels in size))
        if odd:
            notes.append(
                f"{number(odd, 'sample')} of an odd latent height or width: Megatron-Bridge cuts latents into patches of "
                f"{PATCH} x {PATCH} and stops at such a sample"
            )
        return notes

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``<unit>.tar`` and its index of offsets. Returns the places of members."""
        indexed = IndexedTar()
        with SampleTar(folder / f"{unit}.tar") as tar:
            for sample in samples:
                start = tar.end
                members = tar.add(
                    sample.id,
                    {
                        "pth": tensor_file(torch.from_numpy(sample.normalized_mean().astype(np.float16))),
                        "pickle": pickle_tensor(sample.main_text().tokens()),
                        "json": json.dumps(_facts(sample), ensure_ascii=False, sort_keys=True).encode(),
                    },
                )
                indexed.add(sample.id, start, tar.end, members)
        write_tar_index(folder / f"{unit}.tar.idx", indexed)
        return indexed.to_bytes()

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        """Write ``.nv-meta``."""
        tars = ((f"{unit}.tar", IndexedTar.from_bytes(part)) for unit, part in parts if part)
        write_meta(tars, folder / ".nv-meta")


def _facts(sample: ExportedSample) -> dict[str, Any]:
    """Return the content of ``ID.json``: the names of Megatron-Bridge's own preparation, and the frame rate."""
    columns = sample.columns
    is_image = columns["num_frames"] == 1
    facts = {
        "video_path": columns["uri"] or columns["key"],
        "processed_frames": columns["num_frames"],
        "processed_height": columns["height"],
        "processed_width": columns["width"],
        "caption": sample.caption,
        "fps": columns["fps"],
        "deterministic_latents": True,
        "memory_optimization": False,
        "model_version": "wan2.1",
        "processing_mode": "frames" if is_image else "video",
        "resize_settings": {
            "target_size": [columns["height"], columns["width"]],
            "resize_mode": "bicubic",
            "maintain_aspect_ratio": True,
            "center_crop": True,
        },
    }
    return facts | ({"frame_index": 1, "total_frames_in_video": 1} if is_image else {})
