"""Checkpoint folders (``config.json`` and safetensors): find them by path, URL or name, hash them and load them.

Only ``load_weights`` imports torch. Pickled checkpoints (.bin, .pt, .ckpt) are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from stvae.bfloat16 import from_bfloat16
from stvae.checkpoints.download import download_folder, file_sha256
from stvae.checkpoints.files import WeightsError as WeightsError
from stvae.checkpoints.files import open_file, read_bytes, read_json
from stvae.checkpoints.tensor_header import FLOATS, StoredTensor, read_header

if TYPE_CHECKING:
    from torch import Tensor, nn

STANDARD_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""Names of the weights file that diffusers and transformers write."""
BUNDLED_FOLDERS = {"demo": Path(__file__).parent / "demo"}
"""Checkpoints that ship with the package, by name."""


MAX_CONSTANT_BYTES = 1 << 20
"""Largest tensor of statistics: a value per channel, or per channel and latent frame."""
MAX_INTEGER = 1 << 20
"""Largest whole number in a configuration. Sizes of models and counts of layers are far below."""
MAX_LISTED = 10
"""Number of files that a message lists."""


def find_folder(vae: str) -> Path:
    """Return the local folder of a VAE given by name, path or URL. A URL is downloaded into the user's cache."""
    folder = BUNDLED_FOLDERS.get(vae) or (download_folder(vae) if "://" in vae else Path(vae))
    for found in (folder, folder / "vae"):  # the latter in a whole diffusers pipeline
        if _exists(found / "config.json"):
            return found
    got = "; this is a file" if _exists(folder) and not folder.is_dir() else ""
    raise WeightsError(
        f"no VAE at '{vae}': expected a folder with config.json and *.safetensors, or one of "
        f"{sorted(BUNDLED_FOLDERS)}{got}"
    )


def _exists(path: Path) -> bool:
    """Return whether there is anything at a path, even if it is not a file."""
    try:
        return os.path.lexists(path)
    except ValueError:  # it has a NUL
        return False


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a checkpoint. WeightsError if it is damaged or has absurd sizes."""
    config = read_json(folder / "config.json")
    values: list[Any] = [config]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            shown = str(value) if abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"
            raise WeightsError(f"'{folder / 'config.json'}' has the size {shown}; no VAE has sizes above {MAX_INTEGER}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint.

    They are the files that the index names, else the one with a standard name, else those of the only index of a variant
    (``*.safetensors.index.fp16.json``), else the only file. Folders often hold the same weights twice
    (``*.fp16.safetensors``). Raises WeightsError if there is no file or no clear choice.
    """
    names = _list_names(folder)
    files = [name for name in names if name.endswith(".safetensors")]
    standard = [name for name in files if name in STANDARD_NAMES]
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    indexes = [name for name in indexes if name.removesuffix(".index.json") in STANDARD_NAMES] or indexes
    variants = [name for name in names if re.search(r"\.safetensors\.index\.[\w-]+\.json$", name)]
    chosen = indexes or standard or variants or files
    if not chosen:
        raise WeightsError(f"no *.safetensors in {folder}; convert other formats first (pickles are never loaded)")
    if len(chosen) == 1 and chosen[0].endswith(".json"):
        return _indexed_files(folder / chosen[0], files)
    if len(chosen) > 1:
        raise WeightsError(f"{folder} holds several checkpoints, keep one: {', '.join(chosen[:MAX_LISTED])}")
    return [folder / chosen[0]]


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise WeightsError(f"'{folder}' cannot be read: {error.strerror}") from None


def _indexed_files(index: Path, present: list[str]) -> list[Path]:
    """Return the files that an index names. ``present``: names of the files beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"'{index}' has no 'weight_map' with the file of each tensor; download it again")
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise WeightsError(f"'{index}' names '{str(name)[:100]}'; expected a *.safetensors file of its own folder")
        names.add(name)
    if missing := sorted(names - set(present)):
        raise WeightsError(
            f"'{index}' names files that are missing ({len(missing)} of {len(names)}): "
            f"{', '.join(missing[:MAX_LISTED])}; download them"
        )
    return [index.parent / name for name in sorted(names)]


def fingerprint(folder: Path, extra: dict[str, Any] | None = None) -> str:
    """Return the identity of a VAE: a sha256 over the configuration, every weight file and ``extra``."""
    total = hashlib.sha256(json.dumps(read_config(folder) | (extra or {}), sort_keys=True).encode())
    for path in weight_files(folder):
        total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


def read_constants(folder: Path, keys: Iterable[str], *, required: bool = True) -> dict[str, list[float]]:
    """Read small tensors among the weights as flat lists, without torch.

    Raises WeightsError if a tensor is missing and ``required`` is true.
    """
    values: dict[str, list[float]] = {}
    stored = read_headers(folder)
    for key in keys:
        if key not in stored:
            continue
        path, tensor = stored[key]
        size_bytes = tensor.stop - tensor.start
        if tensor.dtype not in FLOATS or size_bytes > MAX_CONSTANT_BYTES:
            raise WeightsError(
                f"tensor '{key}' in '{path}' has {size_bytes} bytes of type {tensor.dtype}; expected at most "
                f"{MAX_CONSTANT_BYTES} bytes of {', '.join(FLOATS)}"
            )
        with open_file(path) as f:
            f.seek(tensor.start)
            values[key] = _to_floats(read_bytes(f, path, size_bytes), tensor.dtype)
    missing = [key for key in keys if key not in values]
    if required and missing:
        raise WeightsError(f"{folder} has no tensor named {', '.join(missing)}")
    return values


def _to_floats(data: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        return [float(x) for x in from_bfloat16(np.frombuffer(data, dtype="<u2"))]
    return [float(x) for x in np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])]


def read_headers(folder: Path) -> dict[str, tuple[Path, StoredTensor]]:
    """Return each tensor of a checkpoint by name, with the file that holds it. WeightsError if two files hold it."""
    tensors: dict[str, tuple[Path, StoredTensor]] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise WeightsError(f"tensor '{name}' is in '{tensors[name][0]}' and in '{path}'; keep one of them")
            tensors[name] = path, tensor
    return tensors


def load_weights(module: nn.Module, folder: Path, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module`` (on the meta device) with the tensors of the folder, without its submodules in ``unused``.

    Keys and shapes of the whole checkpoint must equal those of the module, including the unused submodules.
    Otherwise WeightsError names the tensors that are missing, unexpected or of another shape. Unused submodules become
    None, and their tensors are never read from disk.
    """
    expected = {key: (tuple(tensor.shape), tensor.is_floating_point()) for key, tensor in module.state_dict().items()}
    stored = {key: tensor for key, (_, tensor) in read_headers(folder).items()}
    stored_as = {key: key for key in stored}
    rename: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(stored_as)  # older versions of diffusers had other names for the tensors of attention
    _check_keys(folder, expected, {key: stored[name] for key, name in stored_as.items()})
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, None)
    wanted = {stored_as[key]: key for key in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as f:
                tensors |= {wanted[name]: f.get_tensor(name) for name in f.keys() if name in wanted}
        except (SafetensorError, OSError, RuntimeError) as error:
            raise WeightsError(f"'{path}' cannot be read: {error}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"tensor '{name}' in {folder} has NaN or infinite values; download the weights again")
    module.load_state_dict(tensors, strict=True, assign=True)


def _check_keys(
    folder: Path, expected: dict[str, tuple[tuple[int, ...], bool]], stored: dict[str, StoredTensor]
) -> None:
    """Raise WeightsError unless the stored tensors are the expected ones, given by shape and whether they are floats."""
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys())
    misshapen = [
        f"{key} (got {stored[key].shape}, expected {shape})"
        for key, (shape, _) in expected.items()
        if key in stored and stored[key].shape != shape
    ]
    mistyped = [
        f"{key} ({stored[key].dtype})"
        for key, (_, is_float) in expected.items()
        if key in stored and (stored[key].dtype in FLOATS) != is_float
    ]
    problems = [
        f"{len(keys)} {label}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for label, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of another type", mistyped),
        )
        if keys
    ]
    if problems:
        raise WeightsError(f"the weights in {folder} do not fit its config.json; " + "; ".join(problems))
