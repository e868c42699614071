"""The interface of an export target: what a format that another library reads has to provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.loader import LatentDataset

COLUMNS = ("key", "fps", "height", "width", "num_frames", "bucket")
"""Columns of the index that every exported sample carries beside its id and caption."""
SOURCE_COLUMNS = (
    "uri",
    "src_width",
    "src_height",
    "src_num_frames",
    "start_s",
    "end_s",
    "latent_t",
    "latent_h",
    "latent_w",
)
"""Further columns that targets use."""

Parts = Iterable[tuple[str, bytes]]
"""The name of every unit with what ``ExportTarget.write_unit`` returned for it, in the order of the names."""


def user_columns(data: LatentDataset) -> list[str]:
    """Return the bucket group, if the output has groups, and the user's columns."""
    group = ["group"] if data.recipe.group_names else []
    return [*group, *(name for name in data.samples.column_names if name.startswith("meta_"))]


def exported_columns(data: LatentDataset) -> list[str]:
    """Return the columns that exported samples carry."""
    return [*COLUMNS, *SOURCE_COLUMNS, *user_columns(data)]


class ExportTarget(ABC):
    """Writes the samples of one unit in the format that another library reads.

    The same samples must give the same bytes, because an export that was interrupted writes its unfinished units again.
    """

    name: ClassVar[str]
    """Value of ``--to``."""
    reader: ClassVar[str]
    """Who reads the format, for the list of targets."""
    latents: ClassVar[Literal["mean", "moments"]] = "mean"
    """``moments`` if the reader takes mean and log-variance, so that an output made with ``--store mean`` is refused."""
    text: ClassVar[Literal["none", "may", "must"]] = "may"
    """``must`` if the reader needs embeddings of captions, ``none`` if it takes none."""
    vae_classes: ClassVar[tuple[str, ...]] = ()
    """Classes of the VAEs that the trainer knows; none if it takes any latents."""

    def check(self, data: LatentDataset, options: ExportOptions) -> None:  # noqa: B027 (most targets take every dataset)
        """Raise ConfigError if this format cannot hold ``data``; the message says why and what would help."""

    def notes(self, data: LatentDataset) -> list[str]:
        """Return sentences about what the trainer may not expect of this dataset."""
        if self.vae_classes and data.card.class_name not in self.vae_classes:
            known = " or ".join(self.vae_classes)
            return [
                f"the trainer's own models have latents of {known}; this output has those of {data.card.class_name}"
            ]
        return []

    def refuse(self, columns: Mapping[str, Any]) -> str | None:
        """Return why the format cannot hold a sample with these columns, in a few words; None if it can."""
        return None

    @abstractmethod
    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the files of one unit below ``folder``, which is empty. A unit has at least one sample.

        Paths relative to ``folder`` are the paths below the export, so they must contain ``unit``. Returns what
        ``write_indexes`` needs to know of the unit, or no bytes.
        """

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:  # noqa: B027 (not every format has an index)
        """Write the files that list all units below ``folder``, once every unit is there.

        parts: no bytes for a unit without samples. url: that of the export, or its path if it is local.
        """
