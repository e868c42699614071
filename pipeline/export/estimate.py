"""Estimates the size of an export: some samples are written into a scratch folder, and the rest follows from them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.export.summary import left_out_lines
from pipeline.export.unit_export import ExportSettings, UnitExporter
from pipeline.loader import LatentDataset
from pipeline.progress.formatting import byte_size, number

MAX_SAMPLES = 64
"""Number of samples that are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportEstimate:
    """The estimate of an export."""

    samples: int
    """Number of samples of the output that pass the filter."""
    tried: int
    """Number of samples that were written for the estimate, or were left out."""
    rows: float
    files: float
    size_bytes: float
    left_out: dict[str, int]
    """Number of tried samples that cannot be exported, by reason."""

    def lines(self) -> list[str]:
        """The estimate for people."""
        tried = f"estimated from {number(self.tried, 'sample')} of {number(self.samples)}"
        files, rows = number(round(self.files), "file"), number(round(self.rows), "row")
        first = f"about {byte_size(self.size_bytes)} in {files}, {rows}"
        left_out = [f"{line} (of {number(self.tried)} tried)" for line in left_out_lines(self.left_out)]
        return [f"{first}; {tried}", *left_out]


def estimate_export(data: LatentDataset, settings: ExportSettings, num_units: int) -> ExportEstimate:
    """Write samples that lie evenly in the output, and extend their sizes by the sizes of all latents."""
    elements = _latent_elements(data)
    numbers = np.unique(np.linspace(0, len(data) - 1, MAX_SAMPLES).astype(np.int64))
    with tempfile.TemporaryDirectory() as folder:
        outcome = UnitExporter.of(settings, data).write_sample_of(numbers, Path(folder))
    by_size, by_number = elements.sum() / elements[numbers].sum(), len(data) / len(numbers)
    return ExportEstimate(
        samples=len(data),
        tried=len(numbers),
        rows=outcome.rows * by_number,
        files=outcome.files * (by_number if outcome.files >= outcome.rows else num_units),
        size_bytes=outcome.size_bytes * by_size,
        left_out=outcome.left_out,
    )


def _latent_elements(data: LatentDataset) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 [n]: number of latent positions of each sample."""
    sizes = data.samples.take(np.arange(len(data)), ["latent_t", "latent_h", "latent_w"])
    elements: np.ndarray[tuple[int], np.dtype[np.int64]] = np.prod(
        [np.asarray(size, dtype=np.int64) for size in sizes.values()], axis=0
    )
    return elements
