"""The header of a safetensors file: names, types and shapes of its tensors, checked against the size of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvae.checkpoints.files import MAX_JSON_BYTES, WeightsError, open_file, parse_json, read_bytes, size_bytes

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the floating-point types that weights may have."""
OTHER_TYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
OPAQUE_TYPES = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4", "C64"}
"""Types that no VAE has. A file with a whole model may have them in its other parts."""
MAX_FILE_BYTES = 128 << 30
"""Largest file with weights: twice that of the largest published model in one file."""
MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Type and shape of a tensor in a file."""

    dtype: str
    """Its type, as safetensors writes it: ``F32``, ``BF16``."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor(TensorInfo):
    """A tensor in a safetensors file."""

    start: int
    """Its first byte in the file."""
    stop: int
    """The byte after its last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The header of a safetensors file."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]
    """Texts by name that the program that wrote the file added."""


def read_header(path: Path) -> Header:
    """Read the names, types and shapes of the tensors of a safetensors file.

    Layout: 8 bytes with the header's size, the header as JSON, then the tensors without gaps. WeightsError if the file
    is cut off, or the header does not describe the bytes that follow it.
    """
    with open_file(path) as file:
        file_bytes = size_bytes(file)
        if file_bytes > MAX_FILE_BYTES:
            raise WeightsError(f"'{path}' has {file_bytes} bytes; weights of at most {MAX_FILE_BYTES} bytes are read")
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
    metadata = header.pop("__metadata__", None)
    first = 8 + header_bytes
    tensors = {name: _tensor(values, first, f"tensor '{name}' in '{path}'") for name, values in header.items()}
    _check_spans(tensors, first, file_bytes, path)
    return Header(tensors=tensors, metadata=metadata if isinstance(metadata, dict) else {})


def check_types(tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Raise WeightsError if a tensor has a type that no VAE has."""
    for name, tensor in tensors.items():
        if tensor.dtype in OPAQUE_TYPES:
            raise _wrong_type(f"tensor '{name}' in '{path}'", tensor.dtype)


def _wrong_type(name: str, dtype: Any) -> WeightsError:
    return WeightsError(f"{name} has the type {dtype}; expected one of {', '.join(FLOATS)}")


def _tensor(values: Any, first: int, name: str) -> StoredTensor:
    """Return a tensor of the header. WeightsError if its fields contradict each other."""
    if not isinstance(values, dict) or not {"dtype", "shape", "data_offsets"} <= values.keys():
        raise WeightsError(f"{name} lacks dtype, shape or data_offsets; download the file again")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(dtype, str) or dtype not in FLOATS.keys() | OTHER_TYPES.keys() | OPAQUE_TYPES:
        raise _wrong_type(name, dtype)
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _is_sizes(offsets) or len(offsets) != 2:
        raise WeightsError(f"{name} has the shape {str(shape)[:100]} at {str(offsets)[:100]}, which is not valid")
    expected_bytes = math.prod(shape) * (FLOATS | OTHER_TYPES).get(dtype, 0)
    if dtype not in OPAQUE_TYPES and offsets[1] - offsets[0] != expected_bytes:
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
