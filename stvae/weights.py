"""Checkpoint folders in: ``config.json`` and safetensors, found by path, URL or name, hashed, loaded with strict keys.

Torch is imported only by ``load``. Pickled checkpoints (.bin, .pt, .ckpt) are not read at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMED_FOLDERS = {"demo": Path(__file__).parent / "demo"}
"""Checkpoints that ship with the package."""


class WeightsError(ValueError):
    """A checkpoint folder is incomplete, or does not hold the tensors its configuration asks for."""


def find_folder(codec: str) -> Path:
    """The local folder of a codec given by name, path or URL; a URL is downloaded once into the user's cache."""
    folder = NAMED_FOLDERS.get(codec) or (_download(codec) if "://" in codec else Path(codec))
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"no codec at '{codec}': expected a folder with config.json and *.safetensors, or one of {sorted(NAMED_FOLDERS)}"
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
    """The checkpoint's safetensors files by name; WeightsError where there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"no *.safetensors in {folder}; convert other formats first (pickles are never loaded)")
    return files


def fingerprint(folder: Path) -> str:
    """sha256 over the configuration and every weight file: the identity of a codec."""
    total = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())
    for path in weight_files(folder):
        with path.open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


def constant(folder: Path, key: str) -> list[float]:
    """A small one-axis constant among the weights, flattened; read without torch."""
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as f:
            if key in f.keys():
                return [float(x) for x in f.get_tensor(key).reshape(-1)]
    raise WeightsError(f"{folder} has no tensor '{key}'")


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
    _check_keys(folder, expected, found)
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, None)
    wanted = module.state_dict()
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as f:
            tensors |= {key: f.get_tensor(key) for key in f.keys() if key in wanted}
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
