"""Which layers an output has, and the refusal of those that this program does not understand."""

from __future__ import annotations

import json

from pipeline.errors import ConfigError, IntegrityError, StoreError
from pipeline.output.layout.own_files import LAYER
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.store import Store

FOLDER = "layers"
KINDS = ("text",)
"""Kinds of layers that this program understands: values of ``kind`` in a layer's ``dataset.json``."""


def layer_store(output: Store, name: str) -> Store:
    """The folder of a layer, which is like an output. ConfigError for a name that no layer can have."""
    if not _is_name(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a layer: it takes up to 64 lowercase letters, digits, '-' and '_', and begins "
            "with a letter or a digit"
        )
    return output.below(f"{FOLDER}/{name}")


def layer_names(output: Store) -> list[str]:
    """Names of the layers that have been begun, sorted; empty for a web server, whose files are not listed."""
    if not output.lists_files:
        return []
    found = output.below(FOLDER).top_level()
    return [name for name in sorted(found) if _is_name(name) and _record(output, name) is not None]


def refuse_unknown_layers(output: Store) -> None:
    """Raise IntegrityError, which names the layer, if one is of a kind or a format version that is not known."""
    for name in sorted(output.below(FOLDER).top_level()):
        content = _record(output, name) if _is_name(name) else None
        if content is None:
            continue
        try:
            values = json.loads(content)
            kind, version = values["kind"], values["format_version"]
        except (ValueError, RecursionError, LookupError, TypeError):
            kind, version = None, None
        if kind not in KINDS:
            what = f"a layer of the kind '{kind}'" if isinstance(kind, str) else "no layer of a known kind"
        elif version != FORMAT_VERSION:
            what = f"a layer of format version {version}"
        else:
            continue
        raise IntegrityError(
            f"{output.url}/{FOLDER}/{name} is {what}, which this program does not understand: use a newer Latentmill"
        )


def _is_name(name: str) -> bool:
    """Tell if a layer can have this name. Other files and folders below ``layers/`` are none of ours."""
    return "/" not in name and LAYER.fullmatch(f"{FOLDER}/{name}") is not None


def _record(output: Store, name: str) -> bytes | None:
    """The ``dataset.json`` of a layer; None if there is none, as for a file or a folder that is no layer."""
    try:
        return output.get(f"{FOLDER}/{name}/dataset.json")
    except FileNotFoundError:
        return None
    except StoreError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            return None
        raise
