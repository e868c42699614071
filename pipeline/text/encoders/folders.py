"""The folder of a text encoder: which family it belongs to, and where each encoder, tokenizer and connector is in it.

Nothing here imports torch or reads weights into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.checkpoint import local_text_encoder, shown_vae
from pipeline.text.encoder import EncoderOptions
from pipeline.text.encoders.family import Branch, Family
from pipeline.text.encoders.table import FAMILIES
from stvae.checkpoints.download import file_sha256
from stvae.checkpoints.files import WeightsError, read_json
from stvae.checkpoints.find import hub_hint, snapshot
from stvae.weights import weight_files

INDEX_FILES = ("model_index.json", "modular_model_index.json")
"""Files that name the class of a diffusers pipeline."""
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files that a tokenizer is made of. Which of them a folder has depends on the class."""
MAX_FOLDERS = 100
"""Number of folders inside of the given one that are searched for encoders."""
MAX_INTEGER = 1 << 24
"""Largest whole number in a configuration. Vocabularies and positions of published models are far below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One encoder of a folder."""

    branch: Branch
    folder: Path
    """Has ``config.json`` and the weights."""
    tokenizer: Path
    """Has the files of the tokenizer."""
    config: dict[str, Any]

    def size(self, *names: str) -> int:
        """The size with one of these names in the configuration of the text model. WeightsError if there is none."""
        nested = self.config.get("text_config")
        for config in (nested, self.config) if isinstance(nested, dict) else (self.config,):
            for name in names:
                if isinstance(config.get(name), int) and config[name] > 0:
                    return int(config[name])
        raise WeightsError(
            f"'{self.folder / 'config.json'}' has no {names[0]}; give the file that belongs to the weights"
        )

    @property
    def width(self) -> int:
        """Values per token of a hidden state."""
        return self.size("hidden_size", "d_model")

    @property
    def num_layers(self) -> int:
        """Number of layers of the text model."""
        return self.size("num_hidden_layers", "num_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFolder:
    """A folder as an encoder of a family."""

    family: Family
    parts: tuple[Part, ...]
    """The parts of the family's branches, in their order."""
    projection: Path | None
    """Folder of a connector whose projection makes the embeddings of LTX-2; None for other families."""
    connected: bool
    """True if embeddings are taken after the connector. It fills padding with its registers, so that all rows count."""


def open_folder(encoder: str, options: EncoderOptions) -> EncoderFolder:
    """Find the encoders of a folder, given by path or URL.

    ConfigError if it has none, if several families would fit, or if an option does not fit the family. WeightsError if a
    configuration is damaged.
    """
    root = snapshot(Path(local_text_encoder(encoder)))
    if not root.is_dir():
        raise ConfigError(
            f"no text encoder at '{shown_vae(encoder)}': expected a folder with config.json or model_index.json"
            f"{hub_hint(encoder)}"
        )
    found = list(_model_folders(root))
    index = _pipeline_index(root)
    family = _choose_family(encoder, options.family, index, found)
    if "force_zeros_for_empty_prompt" in index or (family.zero_empty and index):
        family = replace(family, zero_empty=bool(index.get("force_zeros_for_empty_prompt")))
    if options.max_tokens is not None:
        _check_max_tokens(options.max_tokens, family)
        main = replace(family.branches[0], max_tokens=options.max_tokens)
        family = replace(family, branches=(main, *family.branches[1:]))
    parts = tuple(_part(encoder, family, branch, found) for branch in family.branches)
    if options.connector is not None and not family.needs_projection:
        raise ConfigError(f"the family {family.name} has no connector; leave out --connector")
    projection = _connector_folder(options.connector, root) if family.needs_projection else None
    if options.connector is not None and projection is not None:
        _check_length(projection, family.branches[0].max_tokens)
    return EncoderFolder(
        family=family,
        parts=parts,
        projection=projection,
        connected=options.connector is not None,
    )


def encoder_sha256(folder: EncoderFolder) -> str:
    """Hash over the configurations and weights of all encoders, and of the connector."""
    digest = hashlib.sha256()
    for path in (*(part.folder for part in folder.parts), *([folder.projection] if folder.projection else [])):
        digest.update(json.dumps(read_json(path / "config.json"), sort_keys=True).encode())
        for file in weight_files(path):
            stat = file.stat()
            digest.update(bytes.fromhex(_cached_sha256(file, stat.st_size, stat.st_mtime_ns)))
    return digest.hexdigest()


@cache
def _cached_sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    """The hash of a file that this process may have read before; ``size_bytes`` and ``modified_ns`` tell versions apart."""
    return file_sha256(path)


def tokenizer_sha256(folder: EncoderFolder) -> str:
    """Hash over the names and contents of the files of all tokenizers."""
    digest = hashlib.sha256()
    for part in folder.parts:
        for name in TOKENIZER_FILES:
            if (part.tokenizer / name).is_file():
                digest.update(f"{name}\0{file_sha256(part.tokenizer / name)}\0".encode())
    return digest.hexdigest()


def _pipeline_index(root: Path) -> dict[str, Any]:
    """The index of a diffusers pipeline; empty if the folder is none."""
    for name in INDEX_FILES:
        if (root / name).is_file():
            return read_json(root / name)
    return {}


def _model_folders(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders with the ``config.json`` of a transformers model: the given one, then those up to two levels below it."""
    inner = _folders_in(root)
    inner.sort(key=lambda path: not path.name.startswith("text_encoder"))
    below = [deeper for path in inner for deeper in _folders_in(path)]
    for path in [root, *inner, *below][:MAX_FOLDERS]:
        if (path / "config.json").is_file():
            config = read_json(path / "config.json")
            if isinstance(config.get("model_type"), str):
                _check_sizes(path, config)
                yield path, config


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _check_sizes(path: Path, config: dict[str, Any]) -> None:
    values: list[Any] = [config]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise WeightsError(
                f"'{path / 'config.json'}' has a size of {value.bit_length()} bits; no text encoder has sizes above "
                f"{MAX_INTEGER}"
            )


def _choose_family(
    encoder: str, name: str | None, index: dict[str, Any], found: list[tuple[Path, dict[str, Any]]]
) -> Family:
    """The family that was asked for, that of the pipeline, or the only one that fits the models of a folder."""
    if name is not None:
        if name not in FAMILIES:
            raise ConfigError(f"there is no family '{name}' of text encoders; there are {', '.join(FAMILIES)}")
        return FAMILIES[name]
    if pipeline := index.get("_class_name"):
        for family in FAMILIES.values():
            if pipeline in family.pipelines:
                return family
        raise ConfigError(
            f"'{shown_vae(encoder)}' is a {str(pipeline)[:100]}, which no family has; give --family, one of "
            f"{', '.join(FAMILIES)}"
        )
    types = {config["model_type"] for _, config in found}
    fitting = [family for family in FAMILIES.values() if all(types & {*branch.models} for branch in family.branches)]
    most = max((len(family.branches) for family in fitting), default=0)
    fitting = [family for family in fitting if len(family.branches) == most]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"the text encoder at '{shown_vae(encoder)}' serves several families; give --family, one of "
            f"{', '.join(family.name for family in fitting)}"
        )
    shown = ", ".join(sorted(types)) or "no model of transformers"
    raise ConfigError(
        f"no family fits the folder '{shown_vae(encoder)}', which has {shown}; there are {', '.join(FAMILIES)}"
    )


def _part(encoder: str, family: Family, branch: Branch, found: list[tuple[Path, dict[str, Any]]]) -> Part:
    """The encoder of a branch. ConfigError if the folder lacks it or its tokenizer."""
    for folder, config in found:
        if config["model_type"] not in branch.models:
            continue
        beside = folder.parent / folder.name.replace("text_encoder", "tokenizer")
        tokenizer = beside if folder.name.startswith("text_encoder") and beside.is_dir() else folder
        if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
            raise ConfigError(f"no tokenizer in '{tokenizer}': expected tokenizer.json or tokenizer_config.json")
        return Part(branch=branch, folder=folder, tokenizer=tokenizer, config=config)
    got = ", ".join(f"{config['model_type']} in '{folder}'" for folder, config in found) or "none"
    raise ConfigError(
        f"the family {family.name} needs an encoder of type {' or '.join(branch.models)} for '{branch.array}' in "
        f"'{shown_vae(encoder)}'; found {got}"
    )


def _connector_folder(connector: str | None, root: Path) -> Path | None:
    """The folder of LTX-2's connector: the one that was given, or that of the pipeline if there is one."""
    if connector is None:
        return root / "connectors" if (root / "connectors" / "config.json").is_file() else None
    given = Path(local_text_encoder(connector))
    for path in (given, given / "connectors"):
        if (path / "config.json").is_file():
            return path
    raise ConfigError(f"no connector at '{shown_vae(connector)}': expected a folder with config.json and its weights")


def _check_max_tokens(max_tokens: int, family: Family) -> None:
    """Raise ConfigError for a longest string that no encoder takes. CLIP has a position for each of its tokens only."""
    main = family.branches[0]
    if max_tokens <= 0 or (main.is_vector and max_tokens > main.max_tokens):
        most = f" and at most {main.max_tokens}" if main.is_vector else ""
        raise ConfigError(f"--max-tokens must be positive{most}, got {max_tokens}")


def _check_length(connector: Path, max_tokens: int) -> None:
    """Raise ConfigError unless a connector's registers fill a string of the longest length evenly."""
    registers = read_json(connector / "config.json").get("video_connector_num_learnable_registers", 128)
    if isinstance(registers, int) and registers > 0 and max_tokens % registers:
        raise ConfigError(f"--max-tokens must be a multiple of the connector's {registers} registers, got {max_tokens}")
