"""Refuse sets whose batches would differ in more than their samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.options import BatchOptions


def check_same_latents(sets: Mapping[str, LatentDataset], *, allow_imported: bool = False) -> None:
    """Raise ConfigError, naming the sets and the difference, unless all latents mean the same to a transformer.

    Sets without samples and sets with the same samples are refused too, and without ``allow_imported`` imported ones.
    """
    imported = [name for name, data in sets.items() if data.recipe.origin == "import"]
    if imported and len(sets) > 1 and not allow_imported:
        raise ConfigError(
            f"set '{imported[0]}' was imported: nothing verifies that its latents are those of the VAE that it names. If "
            "you trust that, mix it with others by MixedDataset(..., allow_imported=True)"
        )
    for name, data in sets.items():
        if not len(data):
            raise ConfigError(f"set '{name}' has no samples; check where=, or leave the set out")
    _require_equal(
        sets,
        {
            "the class of the VAE": lambda data: data.card.class_name,
            "the VAE (hash of its configuration and weights)": lambda data: data.card.sha256[:16],
            "the number of latent channels": lambda data: data.card.latent_channels,
            "the normalization (shift)": lambda data: data.card.shift,
            "the normalization (scale)": lambda data: data.card.scale,
            "the way samples are cut": lambda data: "whole clips" if data.samples.start_frames is None else "windows",
        },
    )
    by_digest: dict[str, str] = {}
    for name, data in sets.items():
        other = by_digest.setdefault(data.samples.digest, name)
        if other != name:
            raise ConfigError(f"the sets '{other}' and '{name}' have the same samples; give each set once")


def check_same_batches(sets: Mapping[str, LatentDataset], options: BatchOptions) -> None:
    """Raise ConfigError, naming the sets and the difference, unless the options give equal batches of all sets."""
    for name, data in sets.items():
        try:
            data.check(options)
        except ConfigError as error:
            raise ConfigError(f"set '{name}': {error}") from error
    facts: dict[str, Callable[[LatentDataset], Any]] = {}
    if options.dtype is None:
        facts["the stored dtype, which dtype=None keeps"] = lambda data: data.recipe.dtype
    facts["the text encoder of their layers"] = lambda data: (
        "no text layer" if data.text is None else f"{data.text.card.family} {data.text.card.sha256[:16]}"
    )
    facts["the type of the embeddings"] = lambda data: None if data.text is None else data.text.dtype
    if options.conditioning:
        facts["the conditioning frames"] = lambda data: data.recipe.conditioning
    for column in options.columns:
        facts[f"the kind of column '{column}'"] = partial(_kind_of, column)
    _require_equal(sets, facts)


def _require_equal(sets: Mapping[str, LatentDataset], facts: Mapping[str, Callable[[LatentDataset], Any]]) -> None:
    for what, fact in facts.items():
        for (name, data), (other_name, other) in pairwise(sets.items()):
            value, other_value = fact(data), fact(other)
            if value != other_value:
                raise ConfigError(
                    f"the sets '{name}' and '{other_name}' cannot be mixed, because they differ in {what}: "
                    f"{_shorten(value)} and {_shorten(other_value)}"
                )


def _kind_of(column: str, data: LatentDataset) -> str:
    """Return what a batch makes of a column: a tensor of numbers or of booleans, or a list."""
    if column not in data.samples.table.column_names:
        return "number"  # start_frame, which windows have
    kind = data.samples.table.schema.field(column).type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "boolean" if pa.types.is_boolean(kind) else str(kind).removeprefix("large_")


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
