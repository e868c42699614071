"""Caches of musubi-tuner: two safetensors files per sample in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.loader import LatentDataset
from pipeline.loader.text.reading import EmbeddedArray

FORMAT_VERSION = "1.0.1"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of musubi-tuner's models, as its own caching scripts write it."""

    short: str
    """Its name in the names of files."""
    full: str
    """Its name in the files."""
    normalized: bool
    """True if its caches hold normalized latents."""
    dtype: torch.dtype
    texts: tuple[str, ...]
    """Names of the text's arrays in the order of the text layer. ``varlen`` arrays are trimmed, the others are whole."""


ARCHITECTURES = {
    "AutoencoderKLWan": Architecture("wan", "wan", True, torch.bfloat16, ("varlen_t5",)),
    "AutoencoderKLHunyuanVideo": Architecture("hv", "hunyuan_video", False, torch.float16, ("llm", "clipL")),
    "AutoencoderKLHunyuanVideo15": Architecture(
        "hv15", "hunyuan_video_1_5", False, torch.float16, ("varlen_vl_embed", "varlen_byt5_embed")
    ),
    "AutoencoderKLQwenImage": Architecture("qi", "qwen_image", True, torch.bfloat16, ("varlen_vl_embed",)),
}
"""The architectures by the class of their VAE. HunyuanVideo's own caches hold a random sample; ours hold the mean."""


class MusubiTarget(ExportTarget):
    """``<unit>-<id>_00000-<frames>_<width>x<height>_<architecture>.safetensors`` and ``..._te.safetensors``."""

    name: ClassVar[str] = "musubi"
    reader: ClassVar[str] = "musubi-tuner: Wan, HunyuanVideo, HunyuanVideo 1.5, Qwen-Image"
    text: ClassVar[Literal["none", "may", "must"]] = "must"

    def __init__(self) -> None:
        self._architecture = ARCHITECTURES["AutoencoderKLWan"]

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError for latents of a model for which the format is not known."""
        name = data.card.class_name
        if name not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ConfigError(f"musubi: files depend on the model, and there are none for {name}; known are {known}")
        self._architecture = ARCHITECTURES[name]

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the files of a unit's samples."""
        for sample in samples:
            self._write(f"{unit}-{sample.id}", sample, folder)
        return b""

    def _write(self, key: str, sample: ExportedSample, folder: Path) -> None:
        columns, architecture = sample.columns, self._architecture
        frames, height, width = columns["num_frames"], columns["height"], columns["width"]
        facts = {
            "architecture": architecture.full,
            "width": str(width),
            "height": str(height),
            "format_version": FORMAT_VERSION,
        }
        video_facts = facts | {"frame_count": str(frames)}
        name = f"{key}_00000-{frames:03d}_{width:04d}x{height:04d}_{architecture.short}.safetensors"
        save_file(self._latents(sample), folder / name, metadata=video_facts)
        text_facts = {
            "architecture": architecture.full,
            "caption1": sample.caption or "",
            "format_version": FORMAT_VERSION,
        }
        save_file(self._text(sample), folder / f"{key}_{architecture.short}_te.safetensors", metadata=text_facts)

    def _latents(self, sample: ExportedSample) -> dict[str, torch.Tensor]:
        values = sample.normalized_mean() if self._architecture.normalized else sample.raw_mean()
        latents_Cthw = torch.from_numpy(values).to(self._architecture.dtype).contiguous()
        _, latent_t, latent_h, latent_w = latents_Cthw.shape
        return {f"latents_{latent_t}x{latent_h}x{latent_w}_{_dtype_name(latents_Cthw)}": latents_Cthw}

    def _text(self, sample: ExportedSample) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name, array in zip(self._architecture.texts, sample.text.values(), strict=False):
            tensors |= _text_tensors(name, array)
        return tensors


def _text_tensors(name: str, array: EmbeddedArray) -> dict[str, torch.Tensor]:
    """Return an array under the name that the trainer expects, with its mask if it is padded."""
    dtype = _dtype_name(array.values)
    if array.facts.form == "vector":
        return {f"{name}_{dtype}": array.values.contiguous()}
    if name.startswith("varlen_"):
        return {f"{name}_{dtype}": array.tokens().contiguous()}
    values, is_token = array.padded()
    return {f"{name}_{dtype}": values.contiguous(), f"{name}_mask": is_token}


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
