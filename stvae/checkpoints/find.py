"""Checkpoints on this machine: files, folders, whole pipelines, and models in the cache of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stvae.checkpoints.files import WeightsError, open_file, read_json

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")
"""Ends of the names of files with weights."""
ORIGINAL_CLASSES = {"AutoencoderKLCausal3D", "AutoencoderKLConv3D"}
"""Classes of a model's own code (HunyuanVideo and 1.5) whose folders have a ``config.json`` beside the original file."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def find_local(path: Path, vae: str, bundled: list[str]) -> Path:
    """Return the folder with the ``config.json`` of a VAE, or the file that the path leads to.

    A folder as HunyuanVideo publishes it leads to its only file with weights.

    ``vae``: the path as it was given, for messages. WeightsError if there is neither.
    """
    if _exists(path) and not path.is_dir():
        open_file(path).close()
        return path
    path = snapshot(path)
    for found in (path, path / "vae"):  # the latter in a whole diffusers pipeline
        if _exists(found / "config.json"):
            return _original_file(found) or found
    raise WeightsError(
        f"no VAE at '{vae}': expected a folder with config.json and *.safetensors, a file with weights, or one of {bundled}"
        f"{suggestion(path)}{hub_hint(vae)}"
    )


def hub_hint(name: str) -> str:
    """Return the end of a message about a path that looks like the name of a model on a hub; else an empty text."""
    is_hub_name = HUB_NAME.fullmatch(name) and not _exists(Path(name).parent)
    return f"; for a model on the Hugging Face Hub give 'hf://{name}'" if is_hub_name else ""


def suggestion(folder: Path) -> str:
    """Return the end of a message that names a file of the folder that may be the VAE; an empty text if there is none."""
    names = _weight_names(folder)
    named = [name for name in names if re.search(r"vae|^ae\.", name, re.IGNORECASE)] or (
        names if len(names) == 1 else []
    )
    return f"; give the file itself: '{folder / named[0]}'" if named else ""


def _original_file(folder: Path) -> Path | None:
    """Return the only file with weights of a folder whose configuration is of a model's own code, else None."""
    try:
        class_name = read_json(folder / "config.json").get("_class_name")
    except WeightsError:  # reading the configuration will raise it again
        return None
    names = _weight_names(folder) if isinstance(class_name, str) and class_name in ORIGINAL_CLASSES else []
    return folder / names[0] if len(names) == 1 else None


def _weight_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(WEIGHT_SUFFIXES))
    except (OSError, ValueError):
        return []


def snapshot(path: Path) -> Path:
    """Return the snapshot that a model's folder in the Hub's cache has for its main branch; other paths as they are."""
    if not (path.name.startswith("models--") and _exists(path / "snapshots")):
        return path
    main = path / "refs" / "main"
    if main.is_file():
        with open_file(main) as file:
            commit = file.read(100).decode("ascii", "replace").strip()
        if not COMMIT.fullmatch(commit):
            raise WeightsError(f"'{main}' does not name a commit; give a folder in '{path / 'snapshots'}'")
        return path / "snapshots" / commit
    snapshots = sorted((path / "snapshots").iterdir())
    if len(snapshots) != 1:
        raise WeightsError(f"'{path}' has {len(snapshots)} snapshots and no refs/main; give one of its folders")
    return snapshots[0]


def _exists(path: Path) -> bool:
    """Return whether there is anything at a path, even if it is not a file."""
    try:
        return os.path.lexists(path)
    except ValueError:  # it has a NUL
        return False
