"""Pickles of tensors, for the readers that demand them: Energon's text and VeOmni's columns."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
}
"""The names that a pickle of a tensor needs. Every other one is refused when such a pickle is read."""


def pickle_tensor(tensor: torch.Tensor) -> bytes:
    """Return the pickle of a tensor without gradients, with equal bytes for equal tensors."""
    buffer = io.BytesIO()
    _TensorPickler(buffer, protocol=4).dump(tensor.detach().clone(memory_format=torch.contiguous_format))
    return buffer.getvalue()


def unpickle_tensor(content: bytes) -> Any:
    """Read a pickle of tensors and plain values. Raises UnpicklingError for one that names anything else."""
    return _TensorUnpickler(io.BytesIO(content)).load()


class _TensorPickler(pickle.Pickler):
    """A pickler that writes storages in PyTorch's present format, since the older one holds addresses in memory."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.storage.TypedStorage):
            return NotImplemented
        content = io.BytesIO()
        torch.save(obj, content)
        return torch.storage._load_from_bytes, (content.getvalue(),)


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that finds nothing but what tensors are made of, and reads their storages without running code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a pickle of tensors")
        return _load_storage if name == "_load_from_bytes" else super().find_class(module, name)


def _load_storage(content: bytes) -> Any:
    """Read a storage as ``torch.storage._load_from_bytes`` does, which would unpickle anything."""
    return torch.load(io.BytesIO(content), weights_only=True)
