"""Settings that all importers of a job share, and the recipe that they follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.imports.imported_sample import Form
from pipeline.imports.registry import IMPORT_FORMATS
from pipeline.recipe import Recipe, Run
from stvae.card import Card

PACKAGES = ("torch", "numpy", "pyarrow")
"""Packages that read and convert latents."""
MAX_FILE_BYTES = 2 << 30
"""Largest file with one sample. A minute of video at 720p has latents of 0.1 GB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """The choices of the user about an import. None stands for what suits the format."""

    source_format: str
    """Name of an ``ImportFormat``."""
    latents: Form | None = None
    store: str | None = None
    dtype: str | None = None
    unit_clips: int = 128
    captions: str | None = None
    """URL of a table with captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSettings:
    """Everything that an importer is made from. Ray sends it to the importers' processes."""

    recipe: Recipe
    run: Run
    card: Card
    source_format: str
    urls: dict[str, str]
    """Where each source is in this run, by its name."""
    captions: str | None
    """URL of a table with captions."""
    job: str
    """Random name of the job, in the records of its attempts."""


def import_recipe(options: ImportOptions, card: Card, said: Form | None) -> Recipe:
    """Return the recipe of an import. ConfigError if the form of the latents cannot be known.

    ``said``: the form that the source's own files say.
    """
    import_format = IMPORT_FORMATS[options.source_format]
    form = options.latents or said or import_format.form(card)
    if form is None:
        raise ConfigError(
            f"--from {import_format.name}: whether latents of {card.class_name} are raw or normalized in these files is not "
            "known. Find out how they were made, then give --latents raw or --latents normalized"
        )
    sampled = import_format.holds_samples(card)
    return Recipe(
        vae=card.sha256,
        buckets=(),
        origin="import",
        imported_latents=form,
        store=options.store or ("sample" if sampled else "mean"),  # type: ignore[arg-type]
        dtype=options.dtype or import_format.dtype,  # type: ignore[arg-type]
        unit_clips=options.unit_clips,
        max_item_bytes=MAX_FILE_BYTES,
    )


def declared(card: Card) -> Card:
    """The card of a VAE that the user says has made the latents."""
    return dataclasses.replace(card, declared=True)
