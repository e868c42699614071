"""Files of ``torch.save`` that hold tensors and plain values, which PyTorch reads with ``weights_only=True``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def tensor_file(content: torch.Tensor | Mapping[str, Any]) -> bytes:
    """Return the bytes of ``torch.save``. Equal content gives equal bytes: a file's own name is not in them.

    A tensor that is a part of a larger one is copied, since the file would hold the larger one.
    """
    buffer = io.BytesIO()
    torch.save(_compact(content) if isinstance(content, torch.Tensor) else _compact_values(content), buffer)
    return buffer.getvalue()


def write_tensor_file(path: Path, content: torch.Tensor | Mapping[str, Any]) -> None:
    """Write a file of ``tensor_file`` and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tensor_file(content))


def _compact_values(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _compact(value) if isinstance(value, torch.Tensor) else value for name, value in content.items()}


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
