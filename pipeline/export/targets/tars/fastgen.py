"""Tars for FastGen's ``WDSLoader``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Literal

import torch

from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.export.targets.tars.sample_tar import SampleTar
from pipeline.export.targets.tensor_files import tensor_file


class FastGenTarget(ExportTarget):
    """Tars with ``ID.latent.pth``, ``ID.txt_emb.pth``, ``ID.txt`` and ``ID.json``, in a folder for each size of clips.

    Latents are normalized, float32 ``[C,t,h,w]``. Text is padded to the family's length ``[L,D]``. The reader stacks the
    samples of a batch whatever their sizes, so each loader gets the folder of one size: ``<height>x<width>x<frames>``.
    """

    name: ClassVar[str] = "fastgen"
    reader: ClassVar[str] = "FastGen"
    text: ClassVar[Literal["none", "may", "must"]] = "must"

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``<height>x<width>x<frames>/<unit>.tar`` for every size of the unit."""
        tars: dict[str, SampleTar] = {}
        with ExitStack() as stack:
            for sample in samples:
                size = "{height}x{width}x{num_frames}".format_map(sample.columns)
                if size not in tars:
                    tars[size] = stack.enter_context(SampleTar(folder / size / f"{unit}.tar"))
                text_LD, _ = sample.main_text().padded()
                facts = {name: value for name, value in sample.columns.items() if value is not None}
                tars[size].add(
                    sample.id,
                    {
                        "latent.pth": tensor_file(torch.from_numpy(sample.normalized_mean())),
                        "txt_emb.pth": tensor_file(text_LD),
                        "txt": (sample.caption or "").encode(),
                        "json": json.dumps({"caption": sample.caption} | facts, default=str, sort_keys=True).encode(),
                    },
                )
        return b""
