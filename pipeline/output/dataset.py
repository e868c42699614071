"""``dataset.json``: what an output was made with. Written once, by the first job; every later one must agree."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, IntegrityError
from pipeline.recipe import FORMAT_VERSION, Recipe, Run, differing_fields
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store
from stvae.card import Card

PATH = "dataset.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The facts that readers and writers of an output share."""

    recipe: Recipe
    card: Card
    environment: dict[str, str]


def open_dataset(store: Store, recipe: Recipe, card: Card, environment: Callable[[], dict[str, str]]) -> Dataset:
    """Agree with what is recorded of this output, or record what it is made with.

    ``environment`` is asked for only where nothing is recorded: it may take a GPU to know. ConfigError names the fields
    that differ where the output was made with another recipe.
    """
    with contextlib.suppress(FileNotFoundError):
        return agreed_dataset(store, recipe)
    ours = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_json(),
        "vae": card.to_json(),
        "environment": environment(),
    }
    store.put_new(PATH, json.dumps(ours, indent=1, sort_keys=True).encode())
    failpoint(Failpoint.DATASET_RECORDED)
    return agreed_dataset(store, recipe)


def agreed_dataset(store: Store, recipe: Recipe) -> Dataset:
    """What the output was made with; ConfigError where that was another recipe, FileNotFoundError where nothing was."""
    recorded = read_dataset(store)
    if recorded.recipe.fingerprint != recipe.fingerprint:
        fields = differing_fields(recorded.recipe.to_json(), recipe.to_json())
        raise ConfigError(
            f"{store.url} was made with recipe {recorded.recipe.fingerprint}, this is {recipe.fingerprint}; "
            "give another --output, or the recorded settings. They differ in:\n  " + "\n  ".join(fields)
        )
    return recorded


def read_dataset(store: Store) -> Dataset:
    """What an output was made with. FileNotFoundError if nothing was; IntegrityError for a format we do not read."""
    values: dict[str, Any] = json.loads(store.get(PATH))
    if values["format_version"] > FORMAT_VERSION:
        raise IntegrityError(
            f"{store.url} has format version {values['format_version']}; this program reads up to {FORMAT_VERSION}"
        )
    return Dataset(
        recipe=Recipe.from_json(values["recipe"]),
        card=Card.from_json(values["vae"]),
        environment=values["environment"],
    )


def recorded_dataset(store: Store) -> Dataset:
    """What an output was made with; ConfigError where there is none."""
    try:
        return read_dataset(store)
    except FileNotFoundError:
        raise ConfigError(f"{store.url} has no dataset.json: is it the output of an encode job?") from None


def resolved(recipe: Recipe, run: Run, store: Store) -> Recipe:
    """The recipe with ``auto`` decided: as this output was begun, else bfloat16 on GPUs and float32 without."""
    if recipe.compute_dtype != "auto":
        return recipe
    try:
        return dataclasses.replace(recipe, compute_dtype=read_dataset(store).recipe.compute_dtype)
    except FileNotFoundError:
        return dataclasses.replace(recipe, compute_dtype=run.auto_compute_dtype)
