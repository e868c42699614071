"""Checkpoints on this machine: files, folders, whole pipelines, and models in the cache of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stvae.checkpoints.files import WeightsError, open_file

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")
"""Ends of the names of files with weights."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def find_local(path: Path, vae: str, bundled: list[str]) -> Path:
    """Return the folder with the ``config.json`` of a VAE, or the file that the path leads to.

    ``vae``: the path as it was given, for messages. WeightsError if there is neither.
    """
    if _exists(path) and not path.is_dir():
        open_file(path).close()
        return path
    path = _snapshot(path)
    for found in (path, path / "vae"):  # the latter in a whole diffusers pipeline
        if _exists(found / "config.json"):
            return found
    raise WeightsError(
        f"no VAE at '{vae}': expected a folder with config.json and *.safetensors, a file with weights, or one of {bundled}"
        f"{suggestion(path)}"
    )


def suggestion(folder: Path) -> str:
    """Return the end of a message that names a file of the folder that may be the VAE; an empty text if there is none."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(WEIGHT_SUFFIXES))
    except (OSError, ValueError):
        return ""
    named = [name for name in names if re.search(r"vae|^ae\.", name, re.IGNORECASE)] or (
        names if len(names) == 1 else []
    )
    return f"; give the file itself: '{folder / named[0]}'" if named else ""


def _snapshot(path: Path) -> Path:
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
