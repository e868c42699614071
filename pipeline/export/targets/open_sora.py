"""The cached tables of Open-Sora 2.0: a CSV with the paths of tensors that ``torch.load`` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pipeline.errors import ConfigError
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets.tensor_files import write_tensor_file
from pipeline.loader import LatentDataset

TABLE = "dataset.csv"
COLUMNS = (
    *("path", "text", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps"),
    *("latents_path", "text_t5_path", "text_clip_path"),
)


class OpenSoraTarget(ExportTarget):
    """``dataset.csv``, and three ``.pt`` files per sample: latents, T5's rows and CLIP's vector.

    Latents are normalized, bfloat16 ``[C,t,h,w]``. T5's rows are padded to the family's length. Paths in the table are
    absolute: those below ``--root``, or where the export lies. Images have no frame rate: Open-Sora divides the number of
    frames by it, and would leave them out.
    """

    name: ClassVar[str] = "open-sora"
    reader: ClassVar[str] = "Open-Sora 2.0, dataset cached_video_text"
    text: ClassVar[Literal["none", "may", "must"]] = "must"
    vae_classes: ClassVar[tuple[str, ...]] = ("AutoencoderKLHunyuanVideo",)

    def __init__(self) -> None:
        self._root: str | None = None

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError if the layer lacks rows of T5 or the vector of CLIP: the reader would take zeros instead."""
        forms = {array.form for array in data.text.card.arrays} if data.text is not None else set()
        if data.text is not None and forms != {"tokens", "vector"}:
            raise ConfigError(
                f"open-sora needs rows of T5 and the vector of CLIP, and the layer '{data.text.name}' has "
                f"{' and '.join(sorted(forms))} only; make one with encode_text.py --family open-sora-2"
            )
        self._root = options.root

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the tensors. Returns the unit's rows of the table, with paths relative to the export."""
        rows = io.StringIO()
        table = csv.writer(rows, lineterminator="\n")
        for sample in samples:
            paths = self._write(f"{unit}/{sample.id}", sample, folder)
            table.writerow([*_facts(sample), *paths])
        return rows.getvalue().encode()

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        """Write the table of all units."""
        root = (self._root or url).rstrip("/")
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for _, part in parts:
                for row in csv.reader(io.StringIO(part.decode(), newline="")):
                    table.writerow([*row[:-3], *(f"{root}/{path}" if path else "" for path in row[-3:])])

    def _write(self, name: str, sample: ExportedSample, folder: Path) -> list[str]:
        latents_Cthw = torch.from_numpy(sample.normalized_mean()).to(torch.bfloat16)
        tensors: dict[str, torch.Tensor] = {"latents": latents_Cthw}
        for array in sample.text.values():
            is_vector = array.facts.form == "vector"
            tensors.setdefault("clip" if is_vector else "t5", array.values if is_vector else array.padded()[0])
        paths = []
        for folder_name in ("latents", "t5", "clip"):
            path = f"{folder_name}/{name}.pt" if folder_name in tensors else ""
            if path:
                write_tensor_file(folder / path, tensors[folder_name])
            paths.append(path)
        return paths


def _facts(sample: ExportedSample) -> list[Any]:
    """Return the columns of the table that are no paths of tensors."""
    columns = sample.columns
    height, width, fps = columns["height"], columns["width"], columns["fps"]
    path = columns["uri"] or columns["key"]
    size = [columns["num_frames"], height, width, height / width, height * width]
    return [path, sample.caption, *size, "" if fps is None else fps]
