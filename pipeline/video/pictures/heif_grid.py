"""Reads AVIF and HEIC pictures that are stored as a grid of tiles, as phones write them. Runs in decoding children only.

FFmpeg opens each tile as a stream of its own, whose id is that of the tile's item. The ``meta`` box says how the tiles
form the picture. Source: ISO/IEC 23008-12, section 6.6.2.3, and ISO/IEC 14496-12, section 8.11.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.containers import HDR_TRANSFERS, STILL_BRANDS, decoded, open_container, prepare
from pipeline.video.windows import VideoFacts

CONTAINER = "heif_grid"
"""Name of these files in ``VideoFacts``."""
MAX_META_BYTES = 1 << 24
"""Largest ``meta`` box that is read. A phone's has a few kilobytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A picture of ``rows`` times ``columns`` tiles, cropped at the right and the bottom to ``width`` and ``height``."""

    rows: int
    columns: int
    width: int
    height: int
    tiles: tuple[int, ...]
    """Ids of the tiles' items, row by row."""
    rotation: int
    """Degrees counter-clockwise that turn the picture upright, after mirroring."""
    mirrored: bool
    """True if the picture is mirrored left to right first."""


def find_grid(file: BinaryIO) -> Grid | None:
    """Return the grid that is the file's main picture; None if that is not a grid. Rejected for one that is damaged."""
    file.seek(0)
    start = file.read(32)
    brands = {start[i : i + 4].decode("latin-1") for i in range(8, 32, 4)}
    if start[4:8] != b"ftyp" or not brands & STILL_BRANDS:
        return None
    try:
        meta = _read_meta(file)
        return _grid(meta, file) if meta else None
    except (IndexError, KeyError, ValueError) as error:
        raise Rejected("probe", "damaged_container", "the boxes that describe the picture are damaged") from error


def probe(file: BinaryIO, grid: Grid, max_pixels: int) -> VideoFacts:
    """Facts of a picture in tiles, without decoding it. Raises Rejected if it is too large."""
    if grid.width * grid.height > max_pixels:
        raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
    container = open_container(file)
    try:
        context = _tile_streams(container, grid)[0].codec_context
        return VideoFacts(
            container=CONTAINER,
            codec=context.codec.canonical_name,
            coded_width=grid.width,
            coded_height=grid.height,
            rotation=grid.rotation,
            mirrored=grid.mirrored,
            sample_aspect=Fraction(1),
            time_base=Fraction(1),
            pts=(0,),
            end_pts=1,
            is_image=True,
            hdr=HDR_TRANSFERS.get(int(context.color_trc or 0)),
            decord_refusal="a grid of tiles",
        )
    finally:
        container.close()


def frames(file: BinaryIO, pixel_format: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (0, RGB ``[H,W,3]`` in FFmpeg's ``pixel_format``): the tiles put together, as stored.

    Raises Rejected if a tile is missing or differs in size from the first.
    """
    grid = find_grid(file)
    assert grid is not None
    container = open_container(file)
    try:
        tiles = [next(decoded(container, stream), None) for stream in _tile_streams(container, grid)]
    finally:
        container.close()
    pictures = [None if tile is None else tile.to_ndarray(format=pixel_format) for tile in tiles]
    first = pictures[0]
    if first is None or any(picture is None or picture.shape != first.shape for picture in pictures):
        raise Rejected("decode", "missing_frame", "a tile of the picture does not decode, or differs in size")
    rows = [np.hstack(pictures[row * grid.columns : (row + 1) * grid.columns]) for row in range(grid.rows)]  # type: ignore[arg-type]
    picture_HWC = np.vstack(rows)
    if picture_HWC.shape[0] < grid.height or picture_HWC.shape[1] < grid.width:
        raise Rejected("decode", "size_changed", "the tiles do not cover the picture")
    yield 0, picture_HWC[: grid.height, : grid.width]


def _tile_streams(container: Any, grid: Grid) -> list[Any]:
    """The stream of every tile, row by row."""
    by_id = {stream.id: stream for stream in container.streams.video if stream.codec_context is not None}
    missing = [tile for tile in grid.tiles if tile not in by_id]
    if missing:
        raise Rejected("probe", "tile_grid", f"{len(missing)} of the picture's {len(grid.tiles)} tiles cannot be read")
    return [prepare(by_id[tile]) for tile in grid.tiles]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the boxes in a row."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8:
            raise ValueError("a box is shorter than its header")
        yield data[position + 4 : position + 8], data[position + 8 : position + length]
        position += length


def _read_meta(file: BinaryIO) -> dict[bytes, bytes]:
    """The boxes in the file's ``meta`` box, by name; empty if there is none."""
    size_bytes, position = file.seek(0, os.SEEK_END), 0
    while position + 8 <= size_bytes:
        file.seek(position)
        length, name = int.from_bytes(file.read(4), "big"), file.read(4)
        header = 8
        if length == 1:
            length, header = int.from_bytes(file.read(8), "big"), 16
        if name == b"meta" and length <= MAX_META_BYTES:
            return dict(_boxes(file.read(length - header)[4:]))
        if length < header:
            break
        position += length
    return {}


def _number(data: bytes, start: int, size: int) -> int:
    if start + size > len(data):
        raise IndexError("a box ends early")
    return int.from_bytes(data[start : start + size], "big")


def _grid(meta: dict[bytes, bytes], file: BinaryIO) -> Grid | None:
    id_bytes = 4 if meta[b"pitm"][0] else 2
    primary = _number(meta[b"pitm"], 4, id_bytes)
    if _item_type(meta[b"iinf"], primary) != b"grid":
        return None
    content = _item_content(meta, primary, file)
    size = 4 if content[1] & 1 else 2
    rotation, mirrored = _orientation(meta[b"iprp"], primary)
    grid = Grid(
        rows=content[2] + 1,
        columns=content[3] + 1,
        width=_number(content, 4, size),
        height=_number(content, 4 + size, size),
        tiles=_tiles(meta[b"iref"], primary),
        rotation=rotation,
        mirrored=mirrored,
    )
    if len(grid.tiles) != grid.rows * grid.columns:
        raise ValueError("the number of tiles is not that of the grid")
    return grid


def _item_type(iinf: bytes, item: int) -> bytes:
    for _, entry in _boxes(iinf[8 if iinf[0] else 6 :]):
        size = 4 if entry[0] == 3 else 2
        if _number(entry, 4, size) == item:
            return entry[6 + size : 10 + size]
    raise KeyError(item)


def _tiles(iref: bytes, item: int) -> tuple[int, ...]:
    """Ids of the items that an item is made of."""
    size = 4 if iref[0] else 2
    for name, content in _boxes(iref[4:]):
        if name == b"dimg" and _number(content, 0, size) == item:
            count = _number(content, size, 2)
            return tuple(_number(content, size + 2 + index * size, size) for index in range(count))
    raise KeyError(item)


def _item_content(meta: dict[bytes, bytes], item: int, file: BinaryIO) -> bytes:
    """The bytes of an item, which lie in the file or in the ``idat`` box."""
    iloc = meta[b"iloc"]
    version = iloc[0]
    offset_size, length_size, base_size, index_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15
    id_size = 4 if version == 2 else 2
    position = 6 + id_size
    for _ in range(_number(iloc, 6, id_size)):
        found = _number(iloc, position, id_size) == item
        position += id_size
        in_idat = version > 0 and _number(iloc, position, 2) & 15 == 1
        position += 4 if version > 0 else 2
        base = _number(iloc, position, base_size)
        position += base_size
        extents = _number(iloc, position, 2)
        position += 2
        content = b""
        for _ in range(extents):
            position += index_size if version > 0 else 0
            offset, length = _number(iloc, position, offset_size), _number(iloc, position + offset_size, length_size)
            position += offset_size + length_size
            if found and in_idat:
                content += meta[b"idat"][base + offset : base + offset + length]
            elif found:
                file.seek(base + offset)
                content += file.read(min(length, 12))
        if found:
            return content
    raise KeyError(item)


def _orientation(iprp: bytes, item: int) -> tuple[int, bool]:
    """(degrees counter-clockwise, mirrored before): the item's ``irot``, then its ``imir``."""
    boxes = dict(_boxes(iprp))
    properties = list(_boxes(boxes[b"ipco"]))
    rotation, mirrored = 0, False
    for index in _property_indices(boxes[b"ipma"], item):
        name, content = properties[index - 1] if index else (b"", b"")
        if name == b"irot":
            rotation = (rotation + (content[0] & 3) * 90) % 360
        elif name == b"imir":
            # mirroring left to right after a rotation is a rotation the other way after mirroring
            rotation, mirrored = ((0 if content[0] & 1 else 180) - rotation) % 360, not mirrored
        elif name == b"clap":
            raise Rejected("probe", "tile_grid", "the picture is a grid of tiles with a crop, which is not read")
    return rotation, mirrored


def _property_indices(ipma: bytes, item: int) -> list[int]:
    """Positions of an item's properties in ``ipco``, counted from 1."""
    id_size, index_size = 4 if ipma[0] else 2, 2 if ipma[3] & 1 else 1
    position = 8
    for _ in range(_number(ipma, 4, 4)):
        owner, count = _number(ipma, position, id_size), _number(ipma, position + id_size, 1)
        position += id_size + 1
        if owner == item:
            mask = 0x7FFF if index_size == 2 else 0x7F
            return [_number(ipma, position + index * index_size, index_size) & mask for index in range(count)]
        position += count * index_size
    return []
