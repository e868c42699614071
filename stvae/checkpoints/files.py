"""Reads the files of a checkpoint, which may be anything: each problem is one sentence, in bounded time and memory."""

from __future__ import annotations

import codecs
import errno
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 4 << 20
"""Largest ``config.json`` or index."""
MAX_DEPTH = 32
"""Largest number of lists and objects inside one another."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class WeightsError(ValueError):
    """A checkpoint folder is incomplete or damaged, or its tensors do not fit its configuration."""


OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags that open a file without waiting for the writer of a pipe. Windows has the first two only."""


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading. WeightsError if there is none, or if it is a pipe, a device or a Git LFS pointer."""
    try:
        fd = os.open(path, OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise WeightsError(f"'{path}' is a socket or device; expected a file") from None
        raise WeightsError(f"'{path}' cannot be opened: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise WeightsError(f"'{path}' is {SPECIAL_FILES.get(stat.S_IFMT(mode), 'no file')}; expected a file")
    file = open(fd, "rb")  # noqa: SIM115, because the caller closes it
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        file.close()
        raise WeightsError(f"'{path}' is a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder")
    file.seek(0)
    return file


def size_bytes(file: io.BufferedReader) -> int:
    """Return the size of an open file."""
    return os.fstat(file.fileno()).st_size


def read_bytes(file: BinaryIO, path: Path, count: int) -> bytes:
    """Read exactly ``count`` bytes. WeightsError if the file ends before or cannot be read."""
    try:
        data = file.read(count)
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be read: {error.strerror}") from None
    if len(data) != count:
        raise WeightsError(f"'{path}' has changed while it was read; load it again")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object. WeightsError if it is anything else, or repeats a field."""
    with open_file(path) as file:
        size = size_bytes(file)
        if size > MAX_JSON_BYTES:
            raise WeightsError(f"'{path}' has {size} bytes; expected JSON of at most {MAX_JSON_BYTES} bytes")
        return parse_json(read_bytes(file, path, size), f"'{path}'")


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in ``data``. WeightsError, which begins with ``name``, if it is anything else."""
    if not data.strip():
        raise WeightsError(f"{name} is empty; download it again")
    if data.startswith(BYTE_ORDER_MARKS):
        raise WeightsError(f"{name} begins with a byte order mark; save it as UTF-8 without one")
    if data.lstrip()[:1] == b"<":
        raise WeightsError(f"{name} is a web page, not JSON; download the file itself, with a token if it needs one")
    try:
        values = json.loads(
            data.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique_fields
        )
    except UnicodeDecodeError:
        raise WeightsError(f"{name} is not UTF-8 text; expected JSON") from None
    except json.JSONDecodeError as error:
        raise WeightsError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; download it again"
        ) from None
    except RecursionError:
        raise WeightsError(f"{name} is nested too deeply; expected at most {MAX_DEPTH} levels") from None
    except ValueError as error:
        reason = "a number has too many digits" if "digits" in str(error) else str(error)
        raise WeightsError(f"{name} cannot be used: {reason}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{name} holds a {type(values).__name__}; expected an object with fields")
    _check_depth(values, name)
    return values


def describe(error: BaseException) -> str:
    """Return the reason of an error that a wrong configuration caused, in a few words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    lines = str(error).strip().splitlines()
    if type(error) is ValueError and lines:
        return lines[0][:300]
    return f"{type(error).__name__}{f': {lines[0][:300]}' if lines else ''}"


def _check_depth(values: Any, name: str) -> None:
    level = [values]
    for _ in range(MAX_DEPTH):
        inner = (list(value.values()) if isinstance(value, dict) else value for value in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    if level:
        raise WeightsError(f"{name} is nested too deeply; expected at most {MAX_DEPTH} levels")


def _no_constant(word: str) -> None:
    raise ValueError(f"it has {word}, which is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number[:40]} is too large")
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"the field '{twice[:100]}' is given twice")
    return values
