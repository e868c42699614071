"""Checkpoint folders (``config.json`` and safetensors): find them by path, URL or name, hash them and load them.

Only ``load_weights`` imports torch. Pickled checkpoints (.bin, .pt, .ckpt) are never read.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from stvae.bfloat16 import from_bfloat16
from stvae.file_identity import version_tag

if TYPE_CHECKING:
    from torch import Tensor, nn

STANDARD_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""Names of the weights file that diffusers and transformers write."""
BUNDLED_FOLDERS = {"demo": Path(__file__).parent / "demo"}
"""Checkpoints that ship with the package, by name."""


WANTED_FILES = ("config.json", ".safetensors", ".safetensors.index.json")
"""Ends of the names of files that a remote checkpoint folder is downloaded for."""


class WeightsError(ValueError):
    """A checkpoint folder is incomplete, or its tensors do not fit its configuration."""


def find_folder(vae: str) -> Path:
    """Return the local folder of a VAE given by name, path or URL. A URL is downloaded into the user's cache."""
    folder = BUNDLED_FOLDERS.get(vae) or (_download_folder(vae) if "://" in vae else Path(vae))
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"  # a whole diffusers pipeline
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"no VAE at '{vae}': expected a folder with config.json and *.safetensors, or one of {sorted(BUNDLED_FOLDERS)}"
        )
    return folder


def _download_folder(url: str) -> Path:
    """Return a local copy of a remote checkpoint folder, which is never out of date.

    Copies are kept in the user's cache under the names, sizes and version tags of their files. If the store reports no
    version of a file, every call downloads the folder, and its copy is kept under its content.
    """
    import fsspec

    fs, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    infos = [
        info for info in fs.ls(root, detail=True) if info["type"] == "file" and info["name"].endswith(WANTED_FILES)
    ]
    infos = [info if version_tag(info) else {**info, **fs.info(info["name"])} for info in infos]
    cache = Path.home() / ".cache" / "latentmill"
    cache.mkdir(parents=True, exist_ok=True)
    versions = sorted((_name(info), info.get("size"), version_tag(info)) for info in infos)
    copy = cache / _short_hash([url, versions]) if all(tag for _, _, tag in versions) else None
    if copy is not None and copy.exists():
        return copy
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        partial = Path(temporary) / "checkpoint"
        partial.mkdir()
        for info in infos:
            fs.get_file(info["name"], str(partial / _name(info)))
        copy = copy or cache / _short_hash(
            [url, [(path.name, _file_sha256(path)) for path in sorted(partial.iterdir())]]
        )
        try:
            partial.rename(copy)
        except OSError:
            if not copy.exists():  # else another process has finished the same download
                raise
    return copy


def _name(info: dict[str, Any]) -> str:
    return Path(info["name"]).name


def _short_hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint.

    They are the files that the index names, else the one with a standard name, else the only one. Folders often hold
    the same weights twice (``*.fp16.safetensors``). Raises WeightsError if there is no file or no clear choice.
    """
    for index in folder.glob("*.safetensors.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / Path(name).name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    standard = [path for path in files if path.name in STANDARD_NAMES]
    if not files:
        raise WeightsError(f"no *.safetensors in {folder}; convert other formats first (pickles are never loaded)")
    if len(standard or files) > 1:
        raise WeightsError(f"{folder} holds several checkpoints, keep one: {', '.join(path.name for path in files)}")
    return standard or files


def fingerprint(folder: Path, extra: dict[str, Any] | None = None) -> str:
    """Return the identity of a VAE: a sha256 over the configuration, every weight file and ``extra``."""
    total = hashlib.sha256(json.dumps(read_config(folder) | (extra or {}), sort_keys=True).encode())
    for path in weight_files(folder):
        total.update(bytes.fromhex(_file_sha256(path)))
    return total.hexdigest()


def read_constants(folder: Path, keys: Iterable[str], *, required: bool = True) -> dict[str, list[float]]:
    """Read small tensors among the weights as flat lists, without torch.

    Raises WeightsError if a tensor is missing and ``required`` is true.
    """
    values: dict[str, list[float]] = {}
    for path in weight_files(folder):
        with path.open("rb") as f:
            size_bytes = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size_bytes))
            for key in keys:
                if key in header:
                    start, stop = header[key]["data_offsets"]
                    f.seek(8 + size_bytes + start)
                    values[key] = _to_floats(f.read(stop - start), header[key]["dtype"])
    missing = [key for key in keys if key not in values]
    if required and missing:
        raise WeightsError(f"{folder} has no tensor named {', '.join(missing)}")
    return values


def _to_floats(data: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        return [float(x) for x in from_bfloat16(np.frombuffer(data, dtype="<u2"))]
    return [float(x) for x in np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])]


def load_weights(module: nn.Module, folder: Path, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module`` (on the meta device) with the tensors of the folder, without its submodules in ``unused``.

    Keys and shapes of the whole checkpoint must equal those of the module, including the unused submodules.
    Otherwise WeightsError names the tensors that are missing, unexpected or of another shape. Unused submodules become
    None, and their tensors are never read from disk.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    stored_shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as f:
            stored_shapes |= {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
    stored_as = {key: key for key in stored_shapes}
    rename: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(stored_as)  # older versions of diffusers had other names for the tensors of attention
    _check_keys(folder, expected, {key: stored_shapes[stored] for key, stored in stored_as.items()})
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, None)
    wanted = {stored_as[key]: key for key in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as f:
            tensors |= {wanted[stored]: f.get_tensor(stored) for stored in f.keys() if stored in wanted}
    module.load_state_dict(tensors, strict=True, assign=True)


def _check_keys(folder: Path, expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys())
    misshapen = [
        f"{key} (got {stored[key]}, expected {expected[key]})"
        for key in expected
        if key in stored and stored[key] != expected[key]
    ]
    problems = [
        f"{len(keys)} {label}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(f"the weights in {folder} do not fit its config.json; " + "; ".join(problems))
