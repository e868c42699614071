"""The tensors of weight files, whatever their format: types and shapes first, values when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from stvae.bfloat16 import from_bfloat16
from stvae.checkpoints.files import WeightsError, open_file, read_bytes
from stvae.checkpoints.pickled import is_pickled, load_pickled
from stvae.checkpoints.tensor_header import FLOATS, Header, StoredTensor, TensorInfo, read_header

if TYPE_CHECKING:
    from torch import Tensor

MAX_CONSTANT_BYTES = 1 << 20
"""Largest tensor of statistics: a value per channel, or per channel and latent frame."""


class WeightFile(Protocol):
    """A file with tensors by name. Each method raises WeightsError if the file is damaged."""

    path: Path
    metadata: dict[str, Any]

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Type and shape of each tensor by name."""

    def constant(self, name: str) -> list[float]:
        """Return the values of a small tensor as a flat list."""

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named tensors with their values."""


def open_weights(path: Path) -> WeightFile:
    """Open a safetensors file or a PyTorch file. The first bytes decide, unless the name says safetensors."""
    with open_file(path) as file:
        first_bytes = file.peek(9)[:9]
    if path.suffix in (".safetensors", ".sft") or first_bytes[8:] == b"{":
        return SafetensorsFile(path)
    if not is_pickled(first_bytes):
        raise WeightsError(f"'{path}' is neither a PyTorch file nor a safetensors file; download it again")
    return PickledFile(path)


class SafetensorsFile:
    """A safetensors file. Constants are read without torch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header: Header = read_header(path)
        self.infos: Mapping[str, StoredTensor] = header.tensors
        self.metadata = header.metadata

    def constant(self, name: str) -> list[float]:
        """Return the values of a small tensor as a flat list."""
        info = self.infos[name]
        size_bytes = info.stop - info.start
        _check_constant(name, self.path, info.dtype, size_bytes)
        with open_file(self.path) as file:
            file.seek(info.start)
            data = read_bytes(file, self.path, size_bytes)
        if info.dtype == "BF16":
            return [float(x) for x in from_bfloat16(np.frombuffer(data, dtype="<u2"))]
        return [float(x) for x in np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[info.dtype])]

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named tensors with their values."""
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name in names}
        except (SafetensorError, OSError, RuntimeError) as error:
            raise WeightsError(f"'{self.path}' cannot be read: {error}") from None


class PickledFile:
    """A file that ``torch.save`` wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = load_pickled(path)
        self.infos: Mapping[str, TensorInfo] = {name: info_of(tensor) for name, tensor in self._tensors.items()}
        self.metadata: dict[str, Any] = {}

    def constant(self, name: str) -> list[float]:
        """Return the values of a small tensor as a flat list."""
        tensor = self._tensors[name]
        _check_constant(name, self.path, self.infos[name].dtype, tensor.numel() * tensor.element_size())
        return [float(x) for x in tensor.flatten().tolist()]

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named tensors, copied from the file: it may change while they are used."""
        return {name: tensor.clone() for name, tensor in self._tensors.items() if name in names}


def info_of(tensor: Tensor) -> TensorInfo:
    """Return type and shape of a tensor as a safetensors file would describe it."""
    name = str(tensor.dtype).removeprefix("torch.")
    short = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U", "bool": "BOOL"}
    kind = name.rstrip("0123456789")
    return TensorInfo(dtype=short.get(kind, name) + name.removeprefix(kind), shape=tuple(tensor.shape))


def _check_constant(name: str, path: Path, dtype: str, size_bytes: int) -> None:
    if dtype not in FLOATS or size_bytes > MAX_CONSTANT_BYTES:
        raise WeightsError(
            f"tensor '{name}' in '{path}' has {size_bytes} bytes of type {dtype}; expected at most "
            f"{MAX_CONSTANT_BYTES} bytes of {', '.join(FLOATS)}"
        )
