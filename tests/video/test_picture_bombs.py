"""Pictures of a few hundred bytes that claim huge sizes or very many frames: rejects by name, before memory is taken."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.pictures.declared_size import declared_size
from pipeline.video.windows import Skip, select_windows
from tests.support.processes import descendants
from tests.video.fuzz_decode import GEOMETRY, resident_bytes
from tests.video.test_hostile import png

RECIPE = Recipe(vae="x", buckets=(Bucket(1, 32, 32),), micro_batch=(1,), max_upscale=2.0, max_duration_s=60.0)
HUGE = 60_000


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    server = Decoders(RECIPE, Run(output="", vae="", sources=(), cpus=1, decode_memory_bytes=2 << 30))
    yield server
    server.close()


def outcomes(decoders: Decoders, content: bytes) -> list[Outcome]:
    with open(os.memfd_create("media"), "r+b") as f:
        f.write(content)
        f.flush()
        return [o for _, o in decoders.clips(f.fileno(), lambda facts: select_windows(facts, RECIPE, GEOMETRY))]


def saved(kind: str, num_frames: int = 1, **options: Any) -> bytes:
    pictures = [Image.new("RGB", (64, 64), (n * 40, 0, 0)) for n in range(num_frames)]
    file = io.BytesIO()
    if num_frames > 1:
        options |= {"save_all": True, "append_images": pictures[1:]}
    pictures[0].save(file, kind, **options)
    return file.getvalue()


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def claims(size: int) -> dict[str, bytes]:
    """A picture of each format that claims to have ``size`` pixels on each side, or the most that its format can say."""
    jpeg, gif, avif, tiff = saved("JPEG"), saved("GIF"), saved("AVIF"), saved("TIFF")
    animation, lossless, lossy = saved("WEBP", 3), saved("WEBP", lossless=True), saved("WEBP")
    most = min(size, 1 << 14)
    for number in (256, 257):  # ImageWidth and ImageLength
        tiff = tiff.replace(struct.pack("<HHII", number, 4, 1, 64), struct.pack("<HHII", number, 4, 1, size))
    return {
        "png": png(size, size, 10),
        "jpeg": patched(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", size, size)),
        "gif": patched(gif, 6, struct.pack("<HH", size, size)),
        "webp animation": patched(animation, 24, (size - 1).to_bytes(3, "little") * 2),
        "webp lossless": patched(lossless, 21, struct.pack("<I", most - 1 | most - 1 << 14)),
        "webp lossy": patched(lossy, 26, struct.pack("<HH", most - 1, most - 1)),
        "avif": patched(avif, avif.index(b"ispe") + 8, struct.pack(">II", size, size)),
        "tiff": tiff,
    }


@pytest.mark.parametrize("name", claims(HUGE))
def test_a_picture_that_claims_a_huge_size_is_a_reject_in_bounded_memory(decoders: Decoders, name: str) -> None:
    (outcome,) = outcomes(decoders, claims(HUGE)[name])
    if name == "avif":  # its decoder takes the size of the coded picture, which is small
        assert isinstance(outcome, Clip)
    else:
        assert isinstance(outcome, RejectedWindow), outcome
        expected = "probe/unknown_format" if name == "tiff" else "probe/too_large"
        assert outcome.reject.name == expected, outcome.reject
    assert max(resident_bytes(pid) for pid in descendants(os.getpid())) < 512 << 20


@pytest.mark.parametrize("name", [name for name in claims(64) if name not in ("avif", "tiff")])
def test_the_declared_size_is_that_of_the_header(name: str) -> None:
    side = {"webp lossy": 16383, "webp lossless": 16384}.get(name, HUGE)
    assert declared_size(io.BytesIO(claims(HUGE)[name])) == (side, side)
    content = claims(64)[name]
    for length in range(len(content)):
        assert declared_size(io.BytesIO(content[:length])) in (None, (64, 64), (63, 63))
    assert declared_size(io.BytesIO(content)) in ((64, 64), (63, 63))


def many_frames(kind: str, count: int) -> bytes:
    """A small animation whose second frame is repeated ``count`` times."""
    if kind == "gif":
        head = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
        frame = b"\x21\xf9\x04\0\x02\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
        return head + frame * count + b"\x3b"
    content = saved("WEBP", 3)
    start = content.index(b"ANMF")
    length = int.from_bytes(content[start + 4 : start + 8], "little")
    body = content[8:start] + content[start : start + 8 + length + length % 2] * count
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_very_many_frames_take_neither_memory_nor_minutes(decoders: Decoders, kind: str) -> None:
    found = outcomes(decoders, many_frames(kind, 30_000))
    assert all(isinstance(outcome, RejectedWindow | Skip) for outcome in found) and len(found) < 100
    assert "probe/too_long" in {outcome.reject.name for outcome in found if isinstance(outcome, RejectedWindow)}
    assert max(resident_bytes(pid) for pid in descendants(os.getpid())) < 512 << 20
