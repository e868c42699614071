"""Tars for FastGen's ``WDSLoader``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import torch

from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.export.targets.tars.sample_tar import SampleTar
from pipeline.export.targets.tensor_files import tensor_file


class FastGenTarget(ExportTarget):
    """A tar per unit with ``ID.latent.pth``, ``ID.txt_emb.pth``, ``ID.txt`` and ``ID.json``.

    Latents are normalized, float32 ``[C,t,h,w]``. Text is padded to the family's length ``[L,D]``, since the reader stacks
    the texts of a batch.
    """

    name: ClassVar[str] = "fastgen"
    reader: ClassVar[str] = "FastGen"
    text: ClassVar[Literal["none", "may", "must"]] = "must"

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``<unit>.tar``, unless the unit has no samples."""
        first = next(samples, None)
        if first is None:
            return b""
        with SampleTar(folder / f"{unit}.tar") as tar:
            for sample in itertools.chain([first], samples):
                text_LD, _ = sample.main_text().padded()
                facts = {name: value for name, value in sample.columns.items() if value is not None}
                tar.add(
                    sample.id,
                    {
                        "latent.pth": tensor_file(torch.from_numpy(sample.normalized_mean())),
                        "txt_emb.pth": tensor_file(text_LD),
                        "txt": (sample.caption or "").encode(),
                        "json": json.dumps({"caption": sample.caption} | facts, default=str, sort_keys=True).encode(),
                    },
                )
        return b""
