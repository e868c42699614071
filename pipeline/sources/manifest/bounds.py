"""Bounds of what one row and one unit of a manifest may take, checked before a library sees the text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

MAX_ROW_BYTES = 64 << 20
"""Longest row of text in bytes."""
MAX_SLICE_BYTES = 512 << 20
"""Most text in bytes that the rows of one unit may have: an encoder holds it in memory several times."""
MAX_HEADER_BYTES = 1 << 20
"""Longest first line of a table in bytes."""
MAX_COLUMNS = 4096
"""Largest number of columns. Every unit of a plan records them."""
MAX_NAME = 1024
"""Longest name of a column in characters."""
MAX_NESTING = 64
"""Most lists and objects inside one another in the text of a row. Arrow's parser ends the process at ten thousand."""


def check_row_bytes(size_bytes: int, row: int, name: str) -> None:
    """ConfigError if a row is longer than any caption and its metadata. ``name``: the manifest, for the message."""
    if size_bytes > MAX_ROW_BYTES:
        raise ConfigError(
            f"{name}: row {row} has more than {MAX_ROW_BYTES >> 20} MB; a row names a video, so perhaps a quote or a line "
            "break is missing"
        )


def check_slice_bytes(size_bytes: int, start: int, stop: int, name: str) -> None:
    """ConfigError if the rows of one unit have more text than an encoder can hold."""
    if size_bytes > MAX_SLICE_BYTES:
        raise ConfigError(
            f"{name}: rows {start + 1} to {stop}, which would be one unit, have {size_bytes >> 20} MB of text; the limit is "
            f"{MAX_SLICE_BYTES >> 20} MB: lower --unit-clips, or leave out columns with large values"
        )


def check_columns(names: list[str], name: str) -> None:
    """ConfigError if there are more columns than a plan can hold, or one with an absurd name."""
    if len(names) > MAX_COLUMNS:
        raise ConfigError(
            f"{name} has {len(names)} columns; the limit is {MAX_COLUMNS}: leave out those that are not needed"
        )
    longest = max(names, key=len, default="")
    if len(longest) > MAX_NAME:
        raise ConfigError(f"{name} has a column whose name has {len(longest)} characters; the limit is {MAX_NAME}")


def is_nested_too_deeply(block: bytes, ends: npt.NDArray[np.int64]) -> int | None:
    """Return the index of the first line with more than ``MAX_NESTING`` open brackets; None if there is none.

    ``ends``: offsets in ``block`` behind each line. Brackets inside of texts count only where lines have very many.

    Shapes: ``change`` and ``depth`` have an element per byte of the block.
    Invariant: ``depth[i]`` minus the depth at the start of its line is the number of brackets that are open after byte i.
    Example: the line ``[[1]]`` has the changes 1, 1, 0, -1, -1 and the depths 1, 2, 2, 1, 0.
    """
    data = np.frombuffer(block, dtype=np.uint8)
    change = ((data == ord("[")) | (data == ord("{"))).view(np.int8) - ((data == ord("]")) | (data == ord("}"))).view(
        np.int8
    )
    depth = np.cumsum(change, dtype=np.int32)
    starts = np.concatenate(([0], ends[ends < len(data)]))
    highest = np.maximum.reduceat(depth, starts)
    base = np.where(starts > 0, depth[starts - 1], 0)
    for number in np.flatnonzero(highest - base > MAX_NESTING):
        stop = starts[number + 1] if number + 1 < len(starts) else len(data)
        if _depth(block[starts[number] : stop]) > MAX_NESTING:
            return int(number)
    return None


def _depth(line: bytes) -> int:
    """Return the largest number of brackets that are open at a time, without those inside of texts."""
    depth = highest = 0
    in_text = escaped = False
    for byte in line:
        if in_text:
            escaped, in_text = not escaped and byte == ord("\\"), escaped or byte != ord('"')
        elif byte == ord('"'):
            in_text = True
        elif byte in b"[{":
            depth += 1
            highest = max(highest, depth)
        elif byte in b"]}":
            depth -= 1
    return highest
