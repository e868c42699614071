"""``dataset.json``: what an output was made with. The first job writes it once, and every later job must agree with it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, IntegrityError, refuse_unknown_fields
from pipeline.output.layers import known_layers as layers
from pipeline.output.layout.own_files import is_own
from pipeline.recipe import FORMAT_VERSION, Recipe, Run
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store
from stvae.card import Card
from stvae.geometry import Geometry, SizeRule

PATH = "dataset.json"
FIELDS = ("format_version", "recipe", "vae", "environment")
NUMBERED = re.compile(r"\d{4}.*")
"""Names in ``edits/`` and ``purges/`` that only this program writes. Both change what an output holds, so unknown ones are
refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The facts that readers and writers of an output share."""

    recipe: Recipe
    card: Card
    environment: dict[str, str]
    """Packages and hardware of the job that began the output."""


def open_dataset(store: Store, recipe: Recipe, card: Card, environment: Callable[[], dict[str, str]]) -> Dataset:
    """Open an output for writing: check that it was begun with this recipe, or record the recipe in a new output.

    ``environment`` is only called for a new output, since finding out about a GPU takes time. Raises ConfigError, which
    names the fields that differ, if the output was made with another recipe.
    """
    with contextlib.suppress(FileNotFoundError):
        return check_recipe(store, recipe)
    assert recipe.compute_dtype != "auto" or recipe.origin == "import", "resolve_compute_dtype comes first"
    values = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_json(),
        "vae": card.to_json(),
        "environment": environment(),
    }
    store.put_new(PATH, json.dumps(values, indent=1, sort_keys=True).encode())
    failpoint(Failpoint.DATASET_RECORDED)
    return check_recipe(store, recipe)  # another job may have been first, with another recipe


def check_recipe(store: Store, recipe: Recipe) -> Dataset:
    """Read what an output was made with. ConfigError if that was another recipe, FileNotFoundError for a new output."""
    recorded = read_dataset(store)
    if recorded.recipe.origin != recipe.origin:
        holds, other = ("imported", "encode") if recorded.recipe.origin == "import" else ("encoded", "import")
        raise ConfigError(
            f"{store.url} holds {holds} latents, which is another recipe: {other} into another --output. MixedDataset "
            "trains from both"
        )
    if recorded.recipe != recipe:
        fields = differing_fields(recorded.recipe.to_json(), recipe.to_json())
        raise ConfigError(
            f"{store.url} was made with recipe {recorded.recipe.fingerprint}, this is {recipe.fingerprint}; "
            "give another --output, or the recorded settings. They differ in:",
            fields,
        )
    return recorded


def differing_fields(recorded: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Lines ``name: recorded -> ours`` for every field that differs between two recipes' plain values."""
    names = sorted(recorded.keys() | ours.keys())
    return [f"{n}: {recorded.get(n)} -> {ours.get(n)}" for n in names if recorded.get(n) != ours.get(n)]


def require_dataset(store: Store) -> Dataset:
    """Read what an output was made with. ConfigError if there is no output."""
    try:
        return read_dataset(store)
    except FileNotFoundError:
        raise ConfigError(f"{store.url} has no dataset.json: is it the output of an encode job?") from None


def require_listed_dataset(store: Store) -> Dataset:
    """Like ``require_dataset``, for commands that list an output and write to it. ConfigError for web servers."""
    if not store.lists_files:
        raise ConfigError(
            f"{store.url} is on a web server, where files cannot be listed or written; give another URL of it"
        )
    return require_dataset(store)


def read_dataset(store: Store) -> Dataset:
    """Read what an output was made with.

    FileNotFoundError if there is no output. IntegrityError if its ``dataset.json`` is damaged, of another format version
    or has unknown fields, or if the output has edits or layers that only a later version understands.
    """
    dataset = _parse_dataset(store.get(PATH), f"{store.url}/{PATH}")
    _refuse_unknown_files(store)
    return dataset


def recorded_environment(store: Store) -> dict[str, str] | None:
    """The environment in which an output was begun; None for a new output. IntegrityError if the record is damaged."""
    try:
        return _parse_dataset(store.get(PATH), f"{store.url}/{PATH}").environment
    except FileNotFoundError:
        return None


def resolve_compute_dtype(recipe: Recipe, run: Run, store: Store) -> Recipe:
    """Replace the compute type ``auto``: by the one this output was begun with, else by the one for this hardware."""
    if recipe.compute_dtype != "auto":
        return recipe
    try:
        recorded = _parse_dataset(store.get(PATH), f"{store.url}/{PATH}")
    except FileNotFoundError:
        return dataclasses.replace(recipe, compute_dtype=run.auto_compute_dtype)
    return dataclasses.replace(recipe, compute_dtype=recorded.recipe.compute_dtype)


def parse_record(content: bytes, where: str, known: Collection[str]) -> dict[str, Any]:
    """Parse a JSON file of the output, which must have exactly the fields ``known``, one of them ``format_version``.

    IntegrityError, which begins with ``where``, if the file is damaged, of another format version or has other fields.
    """
    values: dict[str, Any]
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(where, error) from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise damaged(where, "it has no format_version")
    if version < FORMAT_VERSION:
        raise IntegrityError(
            f"{where} has format version {version}, but this program reads version {FORMAT_VERSION} only: "
            "encode the sources again into a new output"
        )
    if version > FORMAT_VERSION:
        raise IntegrityError(
            f"{where} has format version {version}, but this program reads version {FORMAT_VERSION} only: "
            "use the newer Latentmill that wrote it"
        )
    refuse_unknown_fields(where, values, known)
    missing = [name for name in known if name not in values]
    if missing:
        raise damaged(where, f"it lacks {', '.join(missing)}")
    return values


def damaged(where: str, cause: object) -> IntegrityError:
    """The error for a JSON file of the output that cannot be understood."""
    return IntegrityError(f"{where} is damaged ({cause}): restore it from a copy, or encode into a new output")


def _parse_dataset(content: bytes, where: str) -> Dataset:
    values = parse_record(content, where, FIELDS)
    try:
        _refuse_unknown_card_fields(values["vae"])
        return Dataset(
            recipe=Recipe.from_json(values["recipe"]),
            card=Card.from_json(values["vae"]),
            environment=dict(values["environment"]),
        )
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from error
    except (ConfigError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(where, error) from error


def _refuse_unknown_card_fields(values: dict[str, Any]) -> None:
    geometry = values["geometry"]
    records = [
        (values, Card),
        (geometry, Geometry),
        *((geometry[axis], SizeRule) for axis in ("frames", "height", "width")),
    ]
    for record, record_type in records:
        refuse_unknown_fields("the VAE's card", record, [field.name for field in dataclasses.fields(record_type)])


def _refuse_unknown_files(store: Store) -> None:
    """Raise IntegrityError if an output has edits, purges or layers that this program does not understand.

    The files of a web server are not listed. The loader reads the newest edits there, and refuses unknown ones.
    """
    names = store.top_level() if store.lists_files else set()
    for folder in ("edits", "purges"):
        for name in sorted(store.below(folder).top_level()) if folder in names else ():
            if NUMBERED.fullmatch(name) and not is_own(f"{folder}/{name}"):
                raise IntegrityError(
                    f"{store.url} has {folder}/{name}, which this program does not understand: use a newer Latentmill"
                )
    if layers.FOLDER in names:
        layers.refuse_unknown_layers(store)
