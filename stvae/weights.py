"""Checkpoint folders in: ``config.json`` and safetensors, found by path, URL or name, hashed, loaded with strict keys.

Torch is imported only by ``load``. Pickled checkpoints (.bin, .pt, .ckpt) are not read at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from stvae.bfloat16 import from_bfloat16

if TYPE_CHECKING:
    from torch import Tensor, nn

USUAL_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
NAMED_FOLDERS = {"demo": Path(__file__).parent / "demo"}
"""Checkpoints that ship with the package."""


class WeightsError(ValueError):
    """A checkpoint folder is incomplete, or does not hold the tensors its configuration asks for."""


def find_folder(vae: str) -> Path:
    """The local folder of a VAE given by name, path or URL; a URL is downloaded once into the user's cache."""
    folder = NAMED_FOLDERS.get(vae) or (_download(vae) if "://" in vae else Path(vae))
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"  # a whole diffusers pipeline
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"no VAE at '{vae}': expected a folder with config.json and *.safetensors, or one of {sorted(NAMED_FOLDERS)}"
        )
    return folder


def _download(url: str) -> Path:
    """Copy of a remote checkpoint folder, keyed by its files' names, sizes and entity tags, so never a stale one."""
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    wanted = ("config.json", ".safetensors", ".safetensors.index.json")
    infos = [i for i in fs.ls(root, detail=True) if i["type"] == "file" and i["name"].endswith(wanted)]
    facts = sorted((Path(i["name"]).name, i["size"], str(i.get("ETag") or i.get("mtime"))) for i in infos)
    key = hashlib.sha256(json.dumps([url, facts]).encode()).hexdigest()[:16]
    cache = Path.home() / ".cache" / "latentmill"
    if not (cache / key).exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            part = Path(temporary) / key
            part.mkdir()
            for info in infos:
                fs.get_file(info["name"], str(part / Path(info["name"]).name))
            try:
                part.rename(cache / key)
            except OSError:  # another process finished the same download first
                shutil.rmtree(part)
    return cache / key


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's ``config.json``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files: those of the index, else the one with the usual name, else the only one.

    Folders often hold the same weights twice (``*.fp16.safetensors``). WeightsError where none or no single one is meant.
    """
    for index in folder.glob("*.safetensors.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / Path(name).name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    usual = [path for path in files if path.name in USUAL_NAMES]
    if not files:
        raise WeightsError(f"no *.safetensors in {folder}; convert other formats first (pickles are never loaded)")
    if len(usual or files) > 1:
        raise WeightsError(f"{folder} holds several checkpoints, keep one: {', '.join(path.name for path in files)}")
    return usual or files


def fingerprint(folder: Path, extra: dict[str, Any] | None = None) -> str:
    """sha256 over the configuration, every weight file and ``extra``: the identity of a VAE."""
    total = hashlib.sha256(json.dumps(read_config(folder) | (extra or {}), sort_keys=True).encode())
    for path in weight_files(folder):
        with path.open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


def constants(folder: Path, keys: Iterable[str], *, required: bool = True) -> dict[str, list[float]]:
    """Small constants among the weights, flattened; read without torch. WeightsError for a required one that is missing."""
    found: dict[str, list[float]] = {}
    for path in weight_files(folder):
        with path.open("rb") as f:
            size_bytes = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size_bytes))
            for key in keys:
                if key in header:
                    start, stop = header[key]["data_offsets"]
                    f.seek(8 + size_bytes + start)
                    found[key] = _floats(f.read(stop - start), header[key]["dtype"])
    missing = [key for key in keys if key not in found]
    if required and missing:
        raise WeightsError(f"{folder} has no tensor named {', '.join(missing)}")
    return found


def _floats(data: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        return [float(x) for x in from_bfloat16(np.frombuffer(data, dtype="<u2"))]
    return [float(x) for x in np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])]


def load(module: nn.Module, folder: Path, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module`` (on the meta device) with the folder's tensors, then drop its submodules named in ``unused``.

    Keys and shapes of the whole checkpoint must be exactly the module's, also in the parts dropped: WeightsError names
    those missing, unexpected or of another shape. Unused parts are never read from disk.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as f:
            found |= {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
    stored_as = {key: key for key in found}
    rename: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(stored_as)  # diffusers called the tensors of attention otherwise once
    _check_keys(folder, expected, {key: found[stored] for key, stored in stored_as.items()})
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, None)
    wanted = {stored_as[key]: key for key in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as f:
            tensors |= {wanted[stored]: f.get_tensor(stored) for stored in f.keys() if stored in wanted}
    module.load_state_dict(tensors, strict=True, assign=True)


def _check_keys(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    problems = [
        ("missing", sorted(expected.keys() - found.keys())),
        ("unexpected", sorted(found.keys() - expected.keys())),
        (
            "of another shape",
            [
                f"{k} (got {found[k]}, expected {expected[k]})"
                for k in expected
                if k in found and found[k] != expected[k]
            ],
        ),
    ]
    said = [
        f"{len(keys)} {what}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for what, keys in problems
        if keys
    ]
    if said:
        raise WeightsError(f"the weights in {folder} do not fit its config.json; " + "; ".join(said))
