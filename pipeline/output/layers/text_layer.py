"""``dataset.json`` of a text layer, where its map is, and what readers need to find embeddings.

The loader uses this module, so it imports neither sources nor video.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import ConfigError, IntegrityError
from pipeline.output.dataset import damaged, differing_fields, parse_record
from pipeline.output.layers.text_card import TextCard
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import parquet_metadata, read_parquet
from pipeline.storage.store import Store

KIND = "text"
PATH = "dataset.json"
FIELDS = ("format_version", "kind", "recipe", "card", "environment", "empty_id", "null_id")
NULL_ROW_ID = "0" * 20
"""Text id of a null that no string stands for (``Null.kind`` is ``row``)."""
PURGED_STRINGS = "purged"
"""Number of strings that purges have dropped from a file of strings, in the metadata of the file."""
MAP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("element", pa.int32()),
        ("variant", pa.int32()),
        ("weight", pa.float64()),
        ("text_id", pa.string()),
        ("shown", pa.string()),
    ]
)
"""Columns of the map from samples to text ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLayer:
    """The facts that readers and writers of a text layer share."""

    recipe: TextRecipe
    card: TextCard
    environment: dict[str, str]
    """Packages and hardware of the job that began the layer."""
    empty_id: str
    """Text id of the empty caption."""
    null_id: str | None
    """Text id of the null; None where the null is in the transformer's checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMap:
    """The map from samples to text ids of one generation of the plan."""

    folder: str
    """Folder of its parts, named after their content."""
    parts: int
    captions: tuple[str, ...]
    """Names of the captions, in the order of ``--captions``."""

    @property
    def paths(self) -> list[str]:
        """Paths of its parts, in order."""
        return [f"{self.folder}/{number:05d}.parquet" for number in range(self.parts)]

    @property
    def text_ids(self) -> str:
        """Path of the table of all text ids that are planned so far, sorted."""
        return f"{self.folder}/text_ids.parquet"

    def to_facts(self) -> dict[str, str]:
        """The facts that a generation of the plan is recorded with."""
        return {"map": self.folder, "map_parts": str(self.parts), "captions": json.dumps(self.captions)}

    @classmethod
    def from_facts(cls, facts: dict[str, str]) -> TextMap:
        """The map that ``to_facts`` described."""
        return cls(folder=facts["map"], parts=int(facts["map_parts"]), captions=tuple(json.loads(facts["captions"])))


def text_id(rendered: Sequence[str]) -> str:
    """20 hex digits of the sha256 of the string as it is given to the tokenizer. Several strings are joined by NUL."""
    return hashlib.sha256("\0".join(rendered).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def strings_path(unit_name: str) -> str:
    """Path of the strings of a unit."""
    return f"strings/{unit_name}.parquet"


def strings_digest(content: bytes) -> str:
    """Hash of a file of strings, which the plan records as the unit's ``etag``."""
    return hashlib.sha256(content).hexdigest()[:16]


def open_text_layer(
    store: Store, layer: Callable[[dict[str, str]], TextLayer], environment: Callable[[], dict[str, str]]
) -> TextLayer:
    """Open a layer for writing: check that it was begun with this recipe, or record a new one. ``store``: the layer's.

    ``layer`` makes the layer with an environment; ``environment`` is only called for a new one. Raises ConfigError, which
    names the fields that differ, if the layer was made with another recipe or encoder.
    """
    ours = layer({})
    with contextlib.suppress(FileNotFoundError):
        return _check(store, ours)
    new = layer(environment())
    values = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "recipe": new.recipe.to_json(),
        "card": new.card.to_json(),
        "environment": new.environment,
        "empty_id": new.empty_id,
        "null_id": new.null_id,
    }
    store.put_new(PATH, json.dumps(values, indent=1, sort_keys=True).encode())
    failpoint(Failpoint.DATASET_RECORDED)
    return _check(store, ours)  # another job may have been first, with another recipe


def read_text_layer(store: Store) -> TextLayer:
    """Read what a layer was made with. ``store``: the layer's own.

    FileNotFoundError if there is no layer, IntegrityError if it is damaged, of another version or of another kind.
    """
    where = f"{store.url}/{PATH}"
    content = store.get(PATH)
    values = parse_record(content, where, FIELDS)
    if values["kind"] != KIND:
        raise IntegrityError(f"{where} is that of a layer of the kind '{values['kind']}', not of a text layer")
    try:
        recipe, card = TextRecipe.from_json(values["recipe"]), TextCard.from_json(values["card"])
        if recipe.encoder != card.sha256:
            raise ValueError("its card is not that of its recipe's encoder")
        return TextLayer(
            recipe=recipe,
            card=card,
            environment=dict(values["environment"]),
            empty_id=str(values["empty_id"]),
            null_id=values["null_id"],
        )
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from error
    except (ConfigError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(where, error) from error


def read_text_map(store: Store, generation: int) -> TextMap:
    """The map of a generation of the plan, for example ``index.plan_generations - 1``. ``store``: the layer's own."""
    return TextMap.from_facts(parquet_metadata(store.get(f"plan/{generation:04d}.parquet")))


def read_map_part(store: Store, path: str) -> pa.Table:
    """The rows of one part of a map."""
    return read_parquet(store.get(path))


def _check(store: Store, ours: TextLayer) -> TextLayer:
    recorded = read_text_layer(store)
    if recorded.recipe != ours.recipe or recorded.card != ours.card:
        fields = differing_fields(
            recorded.card.to_json() | recorded.recipe.to_json(), ours.card.to_json() | ours.recipe.to_json()
        )
        raise ConfigError(
            f"{store.url} was made with recipe {recorded.recipe.fingerprint}, this is {ours.recipe.fingerprint}; "
            "give another --layer, or the recorded settings. They differ in:",
            fields,
        )
    return recorded
