"""Local copies of checkpoints behind URLs, which are downloaded again when a file of them changes."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stvae.checkpoints.files import WeightsError, open_file
from stvae.checkpoints.find import WEIGHT_SUFFIXES
from stvae.file_identity import sha256_digest, version_tag

INDEX = r"(?:\.index(?:\.[\w-]+)?\.json)?$"
WANTED_FILES = re.compile(rf"config\.json$|\.safetensors{INDEX}")
"""Ends of the names of files that a remote checkpoint folder is downloaded for."""
PICKLED_FILES = re.compile(rf"\.bin{INDEX}")
"""Ends of the names of files that are downloaded if a folder has no safetensors."""
SCHEDULER = "scheduler/scheduler_config.json"
"""File of a pipeline that says in which scale its transformer works."""
WANTED_TEXT_FILES = re.compile(r"\.(?:json|jinja|model|txt)$")
"""Ends of the names of files, beside weights, that the folder of a text encoder is downloaded for."""
TEXT_FOLDERS = re.compile(r"text_encoder(_\d)?|tokenizer(_\d)?|connectors")
"""Names of a pipeline's folders that text encoders need."""
Request = Callable[[Callable[[], Any]], Any]
"""Makes one call to a store."""
Find = Callable[[Any, str, Request], Iterator[tuple[str, dict[str, Any]]]]
"""Yields the wanted files of a folder in a file system by their path in it, with what ``ls`` reports."""


def download(url: str) -> Path:
    """Return a local copy of the checkpoint folder or file at a URL, which fsspec opens."""
    import fsspec

    fs, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return copy_checkpoint(url, fs, root, lambda call: call())


def copy_checkpoint(url: str, fs: Any, root: str, request: Request, find: Find | None = None) -> Path:
    """Return a local copy of the checkpoint folder or file at ``root`` of a file system, which is never out of date.

    ``request`` makes each call to the store, perhaps with retries; ``find`` chooses the files of a folder, by default those
    of a VAE. Copies are kept in the user's cache under the names, sizes and version tags of their files. If the store
    reports no version of a file, every call downloads the checkpoint, and its copy is kept under its content.
    """
    name = file_name(root)
    if name.endswith(WEIGHT_SUFFIXES):
        files: Iterable[tuple[str, dict[str, Any]]] = _file_and_config(fs, root, name, request)
        return _copy(url, fs, files, request) / name
    return _copy(url, fs, (find or find_vae_files)(fs, root, request), request)


def file_name(path: str) -> str:
    """Return the last part of a path or URL, without a query."""
    return Path(path.partition("?")[0]).name


def _copy(url: str, fs: Any, files: Iterable[tuple[str, dict[str, Any]]], request: Request) -> Path:
    infos = {
        path: info if version_tag(info) else {**info, **request(partial(fs.info, info["name"]))} for path, info in files
    }
    cache = Path.home() / ".cache" / "latentmill"
    cache.mkdir(parents=True, exist_ok=True)
    versions = sorted((path, info.get("size"), version_tag(info)) for path, info in infos.items())
    copy = cache / _short_hash([url, versions]) if all(tag for _, _, tag in versions) else None
    if copy is not None and copy.exists():
        return copy
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        unfinished = Path(temporary) / "checkpoint"
        unfinished.mkdir()
        for path, info in infos.items():
            (unfinished / path).parent.mkdir(exist_ok=True)
            request(partial(fs.get_file, info["name"], str(unfinished / path)))
        copy = copy or cache / _short_hash([url, [(path, file_sha256(unfinished / path)) for path in sorted(infos)]])
        try:
            unfinished.rename(copy)
        except OSError:
            if not copy.exists():  # else another process has finished the same download
                raise
    return copy


def find_vae_files(fs: Any, root: str, request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files of a remote checkpoint by path in it. Those of a pipeline are in ``vae/`` and ``scheduler/``."""
    entries = {Path(info["name"]).name: info for info in request(partial(fs.ls, root, detail=True))}
    prefix = ""
    if "config.json" not in entries and entries.get("vae", {}).get("type") == "directory":
        folder, name = SCHEDULER.split("/")
        if folder in entries:
            files = request(partial(fs.ls, entries[folder]["name"], detail=True))
            found = {Path(info["name"]).name: info for info in files}
            yield from ((SCHEDULER, info) for info in [found.get(name)] if info is not None)
        files = request(partial(fs.ls, entries["vae"]["name"], detail=True))
        entries = {Path(info["name"]).name: info for info in files}
        prefix = "vae/"
    names = [name for name, info in entries.items() if info["type"] == "file"]
    wanted = [name for name in names if WANTED_FILES.search(name)]
    if not any(name.endswith(".safetensors") for name in wanted):
        wanted += [name for name in names if PICKLED_FILES.search(name)]
    yield from ((prefix + name, entries[name]) for name in wanted)


def _file_and_config(fs: Any, root: str, name: str, request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a remote file and the ``config.json`` beside it, if there is one."""
    yield name, request(partial(fs.info, root))
    path, _, query = root.partition("?")
    beside = path.removesuffix(name) + "config.json" + (f"?{query}" if query else "")

    def info_or_none() -> dict[str, Any] | None:
        try:
            info: dict[str, Any] = fs.info(beside)
        except (FileNotFoundError, PermissionError):
            return None
        return info

    if (info := request(info_or_none)) is not None and info["type"] == "file":
        yield "config.json", info


def find_text_encoder_files(fs: Any, root: str, request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files of a text encoder by path: those of its own folder, or of a pipeline's folders for text."""
    entries = {Path(info["name"]).name: info for info in request(partial(fs.ls, root, detail=True))}
    yield from _text_files(entries, "", with_weights="config.json" in entries)  # else they are of other models
    for name, info in entries.items():
        if info["type"] == "directory" and TEXT_FOLDERS.fullmatch(name):
            inner = {Path(info["name"]).name: info for info in request(partial(fs.ls, info["name"], detail=True))}
            yield from _text_files(inner, f"{name}/", with_weights=True)


def _text_files(
    entries: dict[str, dict[str, Any]], prefix: str, *, with_weights: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the wanted files of one folder. PyTorch files are wanted only if there are no safetensors."""
    names = [name for name, info in entries.items() if info["type"] == "file"]
    weights = ".safetensors" if any(name.endswith(".safetensors") for name in names) else ".bin"
    for name in names:
        if WANTED_TEXT_FILES.search(name) or (with_weights and name.endswith(weights)):
            yield prefix + name, entries[name]


def _short_hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the hash of a file. WeightsError if it cannot be read."""
    try:
        with open_file(path) as f:
            return sha256_digest(f).hex()
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be read: {error.strerror}") from None
