"""The interface of an export target: what a format that another library reads has to provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.loader import LatentDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedSample:
    """One sample as every target gets it."""

    id: str
    latents_Cthw: npt.NDArray[np.float32]
    """Normalized posterior mean, ``(raw - shift) * scale``."""
    columns: dict[str, Any]
    """Values of ``exported_columns``; None where a value is missing."""


COLUMNS = ("key", "caption", "fps", "height", "width", "num_frames")
"""Columns of the index that every exported sample carries beside its id."""


def exported_columns(data: LatentDataset) -> list[str]:
    """Return the columns that exported samples carry: ``COLUMNS``, ``group`` if there are bucket groups, user columns."""
    group = ["group"] if data.recipe.group_names else []
    return [*COLUMNS, *group, *(name for name in data.columns.column_names if name.startswith("meta_"))]


class ExportTarget(ABC):
    """Writes the samples of one unit in the format that another library reads.

    The same samples must give the same bytes, because an export that was interrupted writes its unfinished units again.
    """

    name: ClassVar[str]
    """Value of ``--to``."""

    def check(self, data: LatentDataset) -> None:  # noqa: B027 (most targets accept every dataset)
        """Raise ConfigError if this format cannot hold ``data``; the message says why."""

    @abstractmethod
    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> None:
        """Write the files of one unit below ``folder``, which is empty.

        Paths relative to ``folder`` are the paths below the export, so they must contain ``unit``.
        """

    def write_indexes(self, units: list[str], folder: Path) -> None:  # noqa: B027 (not every format has an index)
        """Write the files that list all ``units`` below ``folder``, once every unit is there."""
