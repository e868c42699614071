"""Compressed tars give the items of the plain tar. What cannot be decompressed is a reject, in bounded memory and room."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.tar import compressed
from tests.sources.test_sources import content_of, read_items, write_tar

SAMPLES = [(f"{n}.mp4", bytes(range(256)) * 3000 + bytes([n])) for n in range(6)]
MEMBERS = [
    member
    for name, content in SAMPLES
    for member in ((name, content), (f"{name[0]}.txt", b"about " + name[:1].encode()))
]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstd,
    "TAR.GZ": gzip.compress,
}


def described(items: list[Item], recipe: Recipe) -> list[tuple[str, str | None, bytes | str]]:
    return [(i.key, i.caption, i.fault.message if i.fault else content_of(i, recipe)) for i in items]


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "plain.tar", MEMBERS).read_bytes()


def read(tmp_path: Path, recipe: Recipe, content: bytes, name: str = "a.tar.gz") -> list[Item]:
    """The items of a tar with this content."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / name).write_bytes(content)
    return read_items(folder, recipe, str(folder / name))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_tar_gives_the_items_of_the_plain_one(
    tmp_path: Path, recipe: Recipe, plain: bytes, suffix: str
) -> None:
    found = read(tmp_path, recipe, COMPRESS[suffix](plain), f"a.{suffix}")
    assert described(found, recipe) == described(read(tmp_path, recipe, plain, "a.tar"), recipe)
    assert [item.uri.rpartition(f"/a.{suffix}#")[2] for item in found] == [name for name, _ in SAMPLES]


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz", "zstd", "pigz"])
def test_what_the_programs_write_is_read(tmp_path: Path, recipe: Recipe, plain: bytes, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packed = subprocess.run([program, "-c"], input=plain, capture_output=True, check=True).stdout
    assert len(read(tmp_path, recipe, packed)) == len(SAMPLES)


def test_the_content_tells_how_a_tar_is_compressed(tmp_path: Path, recipe: Recipe, plain: bytes) -> None:
    expected = described(read(tmp_path, recipe, plain, "a.tar"), recipe)
    for content, name in ((plain, "a.tar.gz"), (gzip.compress(plain), "a.tar"), (lzma.compress(plain), "a.tgz")):
        assert described(read(tmp_path, recipe, content, name), recipe) == expected
    tar = write_tar(tmp_path / "b.tar", [("BZh91.mp4", b"x")]).read_bytes()
    assert [item.key for item in read(tmp_path, recipe, tar, "b.tar")] == ["BZh91"]


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_files_joined_with_cat_are_read_to_their_end(tmp_path: Path, recipe: Recipe, plain: bytes, suffix: str) -> None:
    compress = COMPRESS[suffix]
    cut = len(plain) // 3
    parts = compress(plain[:cut]) + compress(plain[cut:])
    assert len(read(tmp_path, recipe, parts)) == len(SAMPLES)
    two_tars = compress(plain) + compress(plain)
    assert len(read(tmp_path, recipe, two_tars)) == 2 * len(SAMPLES)
    if suffix != "tar.zst":
        assert len(read(tmp_path, recipe, two_tars + bytes(1000))) == 2 * len(SAMPLES)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_cut_or_damaged_file_ends_with_a_reject(tmp_path: Path, recipe: Recipe, plain: bytes, suffix: str) -> None:
    packed = COMPRESS[suffix](plain)
    damaged = packed[:200] + b"\xff" * 100 + packed[300:]
    for content, least in (
        (packed[: len(packed) // 2], 0),
        (packed[:-1], 0),
        (packed + b"garbage", len(SAMPLES) - 1),
        *[(damaged, 0)] * (suffix != "tar.zst"),  # Arrow writes zstd without a checksum
    ):
        *whole, last = read(tmp_path, recipe, content)
        assert last.fault is not None and (last.fault.stage, last.fault.reason) == ("read", "damaged_tar"), last
        assert least <= len(whole) <= len(SAMPLES)
        assert all(content_of(item, recipe) == SAMPLES[n][1] for n, item in enumerate(whole))


def test_a_wrong_checksum_is_a_reject_beside_the_items(tmp_path: Path, recipe: Recipe, plain: bytes) -> None:
    packed = gzip.compress(plain)
    *whole, last = read(tmp_path, recipe, packed[:-8] + b"\0\0\0\0" + packed[-4:])
    assert len(whole) >= len(SAMPLES) - 1
    assert last.fault is not None and "incorrect data check" in last.fault.message


def test_members_that_stand_apart_are_joined(tmp_path: Path, recipe: Recipe) -> None:
    names = [f"{n}.mp4" for n in range(3)] + [f"{n}.txt" for n in range(3)]
    tar = write_tar(tmp_path / "b.tar", [(name, name.encode() * 10000) for name in names]).read_bytes()
    found = read(tmp_path, recipe, gzip.compress(tar))
    assert [item.caption for item in found] == [f"{n}.txt" * 10000 for n in range(3)]


def test_a_bomb_is_bounded(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "FREE_BYTES", 8 << 20)
    tar = write_tar(tmp_path / "b.tar", [("0.mp4", b"x"), ("1.mp4", bytes(64 << 20))]).read_bytes()
    for suffix in ("tar.gz", "tar.bz2", "tar.xz", "tar.zst"):
        packed = COMPRESS[suffix](tar)
        one, last = read(tmp_path, recipe, packed)
        assert one.key == "0" and last.key == "1" and last.fault is not None
        assert "decompress to more than 8388608 bytes" in last.fault.message


def test_an_xz_file_that_asks_for_much_memory_is_a_reject(tmp_path: Path, recipe: Recipe, plain: bytes) -> None:
    small = lzma.compress(plain[:4096], filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    # the dictionary's size is one byte of the block header, which ends in a CRC32
    header = bytearray(small[12:24])
    assert header[4] == 8
    header[4] = 36  # 1 GB
    header[8:12] = zlib.crc32(header[:8]).to_bytes(4, "little")
    (last,) = read(tmp_path, recipe, small[:12] + bytes(header) + small[24:])
    assert last.fault is not None and "Memory usage limit" in last.fault.message


def test_a_full_disk_stops_the_job_with_a_sentence(
    tmp_path: Path, recipe: Recipe, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(compressed.tempfile, "TemporaryFile", lambda: full)
    with pytest.raises(StoreError, match=r"no room in .* for the content of a compressed tar: No space left"):
        read(tmp_path, recipe, gzip.compress(plain))


def test_progress_counts_compressed_bytes(tmp_path: Path, recipe: Recipe, plain: bytes) -> None:
    packed = gzip.compress(plain)
    ends = [item.end_byte for item in read(tmp_path, recipe, packed)]
    assert ends == sorted(ends) and ends[0] > 0 and ends[-1] <= len(packed)


def test_the_local_copy_is_gone_after_reading(
    tmp_path: Path, recipe: Recipe, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(compressed.tempfile, "TemporaryFile", lambda: made.append(real()) or made[-1])  # type: ignore[func-returns-value]
    read(tmp_path, recipe, gzip.compress(plain))
    assert len(made) == 1 and made[0].closed
