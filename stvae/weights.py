"""Checkpoints, as folders or single files: find them by path, URL or name, hash them and load them.

Nothing imports torch before ``load_weights``, unless a checkpoint is a PyTorch file or in a model's original layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvae.checkpoints.download import download, file_sha256
from stvae.checkpoints.files import WeightsError as WeightsError
from stvae.checkpoints.files import read_json
from stvae.checkpoints.find import find_local
from stvae.checkpoints.single_file import SingleFile
from stvae.checkpoints.stored import WeightFile, open_weights
from stvae.checkpoints.tensor_header import FLOATS, TensorInfo, check_types

if TYPE_CHECKING:
    from torch import Tensor, nn

STANDARD_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names, without suffixes, of the weights files that diffusers and transformers write."""
BUNDLED_FOLDERS = {"demo": Path(__file__).parent / "demo"}
"""Checkpoints that ship with the package, by name."""
MAX_INTEGER = 1 << 20
"""Largest whole number in a configuration. Sizes of models and counts of layers are far below."""
MAX_LISTED = 10
"""Number of files that a message lists."""


def find_checkpoint(vae: str) -> Path:
    """Return the local folder or file of a VAE given by name, path or URL. A URL is downloaded into the user's cache."""
    path = BUNDLED_FOLDERS.get(vae) or (download(vae) if "://" in vae else Path(vae))
    return find_local(path, vae, sorted(BUNDLED_FOLDERS))


def config_name(checkpoint: Path) -> str:
    """Return the place of a checkpoint's configuration, for messages."""
    return f"'{checkpoint}'" if checkpoint.is_file() else f"'{checkpoint / 'config.json'}'"


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint. WeightsError if it is damaged or has absurd sizes."""
    config = SingleFile(checkpoint).config if checkpoint.is_file() else read_json(checkpoint / "config.json")
    values: list[Any] = [config]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            shown = str(value) if abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"
            raise WeightsError(f"{config_name(checkpoint)} has the size {shown}; no VAE has sizes above {MAX_INTEGER}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint folder: safetensors, else PyTorch's ``*.bin``.

    They are the files that the index names, else the one with a standard name, else those of the only index of a variant
    (``*.safetensors.index.fp16.json``), else the only file. Folders often hold the same weights twice
    (``*.fp16.safetensors``). Raises WeightsError if there is no file or no clear choice.
    """
    names = _list_names(folder)
    for suffix in (".safetensors", ".bin"):
        files = [name for name in names if name.endswith(suffix)]
        standard = [name for name in files if name.removesuffix(suffix) in STANDARD_NAMES]
        indexes = [name for name in names if name.endswith(f"{suffix}.index.json")]
        indexes = [name for name in indexes if name.removesuffix(f"{suffix}.index.json") in STANDARD_NAMES] or indexes
        variants = [name for name in names if re.search(rf"{re.escape(suffix)}\.index\.[\w-]+\.json$", name)]
        if chosen := indexes or standard or variants or files:
            break
    else:
        raise WeightsError(f"no *.safetensors and no *.bin in {folder}; {_other_files(folder, names)}")
    if len(chosen) == 1 and chosen[0].endswith(".json"):
        return _indexed_files(folder / chosen[0], files, suffix)
    if len(chosen) > 1:
        raise WeightsError(
            f"{folder} holds several checkpoints, keep one or give its file: {', '.join(chosen[:MAX_LISTED])}"
        )
    return [folder / chosen[0]]


def _other_files(folder: Path, names: list[str]) -> str:
    others = [name for name in names if Path(name).suffix in (".pth", ".pt", ".ckpt")]
    return f"give its file '{folder / others[0]}' instead" if others else "download the weights"


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise WeightsError(f"'{folder}' cannot be read: {error.strerror}") from None


def _indexed_files(index: Path, present: list[str], suffix: str) -> list[Path]:
    """Return the files that an index names. ``present``: names of the files beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"'{index}' has no 'weight_map' with the file of each tensor; download it again")
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(suffix):
            raise WeightsError(f"'{index}' names '{str(name)[:100]}'; expected a *{suffix} file of its own folder")
        names.add(name)
    if missing := sorted(names - set(present)):
        raise WeightsError(
            f"'{index}' names files that are missing ({len(missing)} of {len(names)}): "
            f"{', '.join(missing[:MAX_LISTED])}; download them"
        )
    return [index.parent / name for name in sorted(names)]


def fingerprint(checkpoint: Path, extra: dict[str, Any] | None = None) -> str:
    """Return the identity of a VAE: a sha256 over the configuration, every weight file and ``extra``."""
    total = hashlib.sha256(json.dumps(read_config(checkpoint) | (extra or {}), sort_keys=True).encode())
    for path in [checkpoint] if checkpoint.is_file() else weight_files(checkpoint):
        total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


def read_constants(checkpoint: Path, keys: Iterable[str], *, required: bool = True) -> dict[str, list[float]]:
    """Read small tensors among the weights as flat lists.

    Raises WeightsError if a tensor is missing and ``required`` is true.
    """
    files = open_files(checkpoint)
    holders = {key: file for file in files for key in keys if key in file.infos}
    missing = [key for key in keys if key not in holders]
    if required and missing:
        raise WeightsError(f"{checkpoint} has no tensor named {', '.join(missing)}")
    return {key: file.constant(key) for key, file in holders.items()}


def read_headers(checkpoint: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Return the file, type and shape of each tensor of a checkpoint by name. WeightsError if two files hold it."""
    return merge_infos(open_files(checkpoint))


def open_files(checkpoint: Path) -> Sequence[WeightFile]:
    """Open the weight files of a checkpoint. WeightsError if one is damaged, or has types that weights do not have."""
    if checkpoint.is_file():
        return [SingleFile(checkpoint)]
    files = [open_weights(path) for path in weight_files(checkpoint)]
    for file in files:
        check_types(file.infos, file.path)
    return files


def merge_infos(files: Sequence[WeightFile]) -> dict[str, tuple[Path, TensorInfo]]:
    """Return the file, type and shape of each tensor of several files by name. WeightsError if two files hold it."""
    tensors: dict[str, tuple[Path, TensorInfo]] = {}
    for file in files:
        for name, info in file.infos.items():
            if name in tensors:
                raise WeightsError(f"tensor '{name}' is in '{tensors[name][0]}' and in '{file.path}'; keep one of them")
            tensors[name] = file.path, info
    return tensors


def load_weights(module: nn.Module, checkpoint: Path, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module`` (on the meta device) with the tensors of a checkpoint, without its submodules in ``unused``.

    Keys and shapes of the whole checkpoint must equal those of the module, including the unused submodules.
    Otherwise WeightsError names the tensors that are missing, unexpected or of another shape. Unused submodules become
    None, and their tensors are not kept.
    """
    expected = {key: (tuple(tensor.shape), tensor.is_floating_point()) for key, tensor in module.state_dict().items()}
    files = open_files(checkpoint)
    stored = {name: info for name, (_, info) in merge_infos(files).items()}
    stored_as = {key: key for key in stored}
    rename: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(stored_as)  # older versions of diffusers had other names for the tensors of attention
    _check_keys(checkpoint, expected, {key: stored[name] for key, name in stored_as.items()})
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, None)
    wanted = {stored_as[key]: key for key in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= {wanted[name]: tensor for name, tensor in file.tensors(wanted.keys()).items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"tensor '{name}' in {checkpoint} has NaN or infinite values; download the weights again"
            )
    module.load_state_dict(tensors, strict=True, assign=True)


def _check_keys(
    checkpoint: Path, expected: dict[str, tuple[tuple[int, ...], bool]], stored: Mapping[str, TensorInfo]
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
        raise WeightsError(f"the weights in {checkpoint} do not fit its config.json; " + "; ".join(problems))
