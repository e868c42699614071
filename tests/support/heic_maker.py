"""Writes HEIC pictures in tiles, as phones do, from frames that x265 encodes."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np

from tests.support.clips_maker import make_clip

TILE = 64
"""Height and width of a tile in pixels."""


def box(name: bytes, *content: bytes, version: int | None = None) -> bytes:
    """A box, with version and flags if it is a full one."""
    body = (b"" if version is None else struct.pack(">I", version << 24)) + b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def encode_tile(folder: Path, tile_HWC: np.ndarray) -> tuple[bytes, bytes]:
    """(``hvcC`` box, sample) of one picture."""
    path = make_clip(
        folder / "tile.mp4",
        size=tile_HWC.shape[:2],
        codec="libx265",
        options={"x265-params": "log-level=none:keyint=1", "crf": "4"},
        pix_fmt="yuv444p",
        frames=[tile_HWC],
    )
    data = path.read_bytes()
    start = data.index(b"hvcC") - 4
    with av.open(str(path)) as container:
        sample = next(bytes(packet) for packet in container.demux(video=0) if packet.size)
    return data[start : start + struct.unpack_from(">I", data, start)[0]], sample


def make_tiled_heic(path: Path, picture_HWC: np.ndarray, quarter_turns: int = 0) -> Path:
    """Write a picture as tiles of 64x64 and a thumbnail. ``quarter_turns`` are counter-clockwise, for ``irot``."""
    height, width = picture_HWC.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.pad(picture_HWC, ((0, rows * TILE - height), (0, columns * TILE - width), (0, 0)), mode="edge")
    tiles = [
        encode_tile(path.parent, padded[y * TILE : y * TILE + TILE, x * TILE : x * TILE + TILE])
        for y in range(rows)
        for x in range(columns)
    ]
    thumbnail = encode_tile(path.parent, np.full((TILE, TILE, 3), 128, np.uint8))
    samples = [sample for _, sample in (*tiles, thumbnail)]
    tile_ids, thumbnail_id, grid_id = range(1, len(tiles) + 1), len(tiles) + 1, len(tiles) + 2
    entries = [box(b"infe", struct.pack(">HH4sB", i, 0, b"hvc1", 0), version=2) for i in (*tile_ids, thumbnail_id)]
    entries.append(box(b"infe", struct.pack(">HH4sB", grid_id, 0, b"grid", 0), version=2))
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    properties = [
        tiles[0][0],
        box(b"ispe", struct.pack(">II", TILE, TILE), version=0),
        box(b"ispe", struct.pack(">II", width, height), version=0),
        box(b"irot", bytes([quarter_turns])),
    ]
    owned = [struct.pack(">HBBB", i, 2, 0x81, 2) for i in (*tile_ids, thumbnail_id)]
    owned.append(struct.pack(">HBBB", grid_id, 2, 3, 0x84))
    references = box(b"dimg", struct.pack(f">HH{len(tiles)}H", grid_id, len(tiles), *tile_ids))
    references += box(b"thmb", struct.pack(">HHH", thumbnail_id, 1, grid_id))

    def meta(first_byte: int) -> bytes:
        places, position = [], first_byte
        for i, sample in zip((*tile_ids, thumbnail_id), samples, strict=True):
            places.append(struct.pack(">HHHHII", i, 0, 0, 1, position, len(sample)))
            position += len(sample)
        places.append(struct.pack(">HHHHII", grid_id, 1, 0, 1, 0, len(grid)))
        return box(
            b"meta",
            box(b"hdlr", struct.pack(">I4s13s", 0, b"pict", b""), version=0),
            box(b"pitm", struct.pack(">H", grid_id), version=0),
            box(b"iinf", struct.pack(">H", len(entries)), *entries, version=0),
            box(b"iref", references, version=0),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">I", len(owned)), *owned, version=0)),
            box(b"idat", grid),
            box(b"iloc", struct.pack(">BBH", 0x44, 0, len(places)), *places, version=1),
            version=0,
        )

    brands = box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic")
    first_byte = len(brands) + len(meta(0)) + 8
    path.write_bytes(brands + meta(first_byte) + box(b"mdat", *samples))
    return path
