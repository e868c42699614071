"""The header of a safetensors file: names, types and shapes of its tensors, checked against the size of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvae.checkpoints.files import MAX_JSON_BYTES, WeightsError, open_file, parse_json, read_bytes, size_bytes

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the floating-point types that weights may have."""
OTHER_TYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
MAX_WEIGHT_BYTES = 32 << 30
"""Largest file with weights: several times that of the largest published VAE."""
MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    stop: int
    """The byte after its last one."""


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the tensors of a safetensors file by name, without their values.

    Layout: 8 bytes with the header's size, the header as JSON, then the tensors without gaps. WeightsError if the file
    is cut off, or the header does not describe the bytes that follow it.
    """
    with open_file(path) as file:
        file_bytes = size_bytes(file)
        if file_bytes > MAX_WEIGHT_BYTES:
            raise WeightsError(f"'{path}' has {file_bytes} bytes; weights of at most {MAX_WEIGHT_BYTES} bytes are read")
        if file_bytes < 10:
            raise WeightsError(f"'{path}' has {file_bytes} bytes; expected a safetensors file: download it again")
        header_bytes = int.from_bytes(read_bytes(file, path, 8), "little")
        begins_as_json = file.peek(1)[:1] == b"{"
        if not begins_as_json or header_bytes > MAX_JSON_BYTES:
            raise WeightsError(
                f"'{path}' is not a safetensors file: it gives {header_bytes} bytes for its header"
                f"{'' if begins_as_json else ', which does not begin with {'}; download it again"
            )
        if header_bytes > file_bytes - 8:
            raise WeightsError(f"'{path}' ends within its header of {header_bytes} bytes; download it again")
        header = parse_json(read_bytes(file, path, header_bytes), f"the header of '{path}'")
    header.pop("__metadata__", None)
    first = 8 + header_bytes
    tensors = {name: _tensor(values, first, f"tensor '{name}' in '{path}'") for name, values in header.items()}
    _check_spans(tensors, first, file_bytes, path)
    return tensors


def _tensor(values: Any, first: int, name: str) -> StoredTensor:
    """Return a tensor of the header. WeightsError if its fields contradict each other."""
    if not isinstance(values, dict) or not {"dtype", "shape", "data_offsets"} <= values.keys():
        raise WeightsError(f"{name} lacks dtype, shape or data_offsets; download the file again")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(dtype, str) or dtype not in FLOATS | OTHER_TYPES:
        raise WeightsError(f"{name} has the type {dtype}; expected one of {', '.join(FLOATS)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _is_sizes(offsets) or len(offsets) != 2:
        raise WeightsError(f"{name} has the shape {str(shape)[:100]} at {str(offsets)[:100]}, which is not valid")
    expected_bytes = math.prod(shape) * (FLOATS | OTHER_TYPES)[dtype]
    if offsets[1] - offsets[0] != expected_bytes:
        raise WeightsError(
            f"{name} of type {dtype} and shape {shape} needs {expected_bytes} bytes, but the header gives it "
            f"{offsets[1] - offsets[0]}"
        )
    return StoredTensor(dtype=dtype, shape=tuple(shape), start=first + offsets[0], stop=first + offsets[1])


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 60 for value in values)


def _check_spans(tensors: dict[str, StoredTensor], first: int, file_bytes: int, path: Path) -> None:
    """Raise WeightsError unless the tensors fill the file from ``first`` to its end, without gaps and overlaps."""
    position = first
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != position:
            raise WeightsError(f"the tensors of '{path}' overlap or leave gaps at byte {min(tensor.start, position)}")
        position = tensor.stop
    if position > file_bytes:
        raise WeightsError(f"'{path}' ends early: it has {file_bytes} of {position} bytes; download it again")
    if position < file_bytes:
        raise WeightsError(f"'{path}' has {file_bytes} bytes, but its header describes {position}; download it again")
