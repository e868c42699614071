"""Counts of what windows became, for a unit, an encoder, a job or an output; and differences of stored latents."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.schema import INT8_ERRORS
from pipeline.output.serialization import Array


@dataclass(kw_only=True, slots=True)
class Counts:
    """Number of samples, skips and rejects, with the frames and bytes of the samples. ``a + b`` adds every field."""

    samples: int = 0
    """Number of samples."""
    frames: int = 0
    """Number of frames of the samples' clips."""
    captions: int = 0
    """Number of samples with a caption that is not empty."""
    skips: Counter[str] = field(default_factory=Counter)
    """Number of skips by reason."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Number of rejects by ``stage/reason``."""
    size_bytes: int = 0
    """Size in bytes of the committed tars."""

    @property
    def windows(self) -> int:
        """Number of windows that are accounted for."""
        return self.samples + self.skips.total() + self.rejects.total()

    def __add__(self, other: Counts) -> Counts:
        """The sum. Another thread may be adding to ``other`` at the same time."""
        return Counts(
            samples=self.samples + other.samples,
            frames=self.frames + other.frames,
            captions=self.captions + other.captions,
            # copied first: a copy is atomic, an iteration over a growing Counter is not
            skips=self.skips + Counter(other.skips),
            rejects=self.rejects + Counter(other.rejects),
            size_bytes=self.size_bytes + other.size_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return {
            "samples": self.samples,
            "frames": self.frames,
            "captions": self.captions,
            "skips": dict(self.skips),
            "rejects": dict(self.rejects),
            "size_bytes": self.size_bytes,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """The counts that ``to_json`` wrote. ``values`` may have other keys as well."""
        return cls(
            samples=values["samples"],
            frames=values["frames"],
            captions=values.get("captions", 0),  # records of earlier programs have no such count
            skips=Counter(values["skips"]),
            rejects=Counter(values["rejects"]),
            size_bytes=values["size_bytes"],
        )


class LatentSums:
    """Sums over the means of the stored latents of a unit, per channel: of the values, and of their squares."""

    def __init__(self, channels: int) -> None:
        self._sums = np.zeros((2, channels))
        self._values_per_channel = 0

    def add(self, stored_Cthw: Array) -> npt.NDArray[np.float64]:
        """Add a latent, whose first channels are its mean. Return the mean. The order of latents decides the last bits."""
        mean_Cthw = stored_Cthw[: self._sums.shape[1]].astype(np.float64)
        self._sums += mean_Cthw.sum(axis=(1, 2, 3)), np.square(mean_Cthw).sum(axis=(1, 2, 3))
        self._values_per_channel += int(np.prod(mean_Cthw.shape[1:]))
        return mean_Cthw

    def to_facts(self) -> dict[str, str]:
        """The sums as facts in the metadata of a unit."""
        sums, sums_of_squares = self._sums.tolist()
        return {
            "latent_count": str(self._values_per_channel),
            "latent_sum": json.dumps(sums),
            "latent_sum_of_squares": json.dumps(sums_of_squares),
        }


@dataclass(kw_only=True, slots=True)
class Int8Errors:
    """Differences of the latents of clips, stored as int8, from what the encoder gave. Latents are not normalized."""

    largest: float = 0.0
    total: float = 0.0
    """Sum of all differences."""
    num_values: int = 0

    @property
    def mean(self) -> float:
        """Mean difference."""
        return self.total / self.num_values if self.num_values else 0.0

    def merge(self, other: Int8Errors) -> None:
        """Add the differences of other clips."""
        self.largest = max(self.largest, other.largest)
        self.total += other.total
        self.num_values += other.num_values

    def add(self, rows: pa.Table) -> None:
        """Add rows of unit metadata or of an index. Rows without these errors count nothing."""
        if any(name not in rows.column_names for name in INT8_ERRORS):
            return
        samples = rows.filter(pc.field(INT8_ERRORS[0]).is_valid())
        largest, mean = (samples[name].to_numpy() for name in INT8_ERRORS)
        sizes = [samples[f"latent_{axis}"].to_numpy().astype(np.int64) for axis in "cthw"]
        num_values = np.prod(sizes, axis=0)
        self.largest = max(self.largest, float(largest.max(initial=0.0)))
        self.total += float((mean * num_values).sum())
        self.num_values += int(num_values.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How one sample that was encoded again from its source differs from what is stored."""

    id: str
    key: str
    max_abs: float
    mean_abs: float
    cosine: float
    psnr_db: float
    """Peak signal-to-noise ratio of the decoded latent against the source's frames."""
    float16_psnr_db: float | None = None
    """The same for the sample encoded again and rounded to float16; for outputs of type int8."""
