from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from pipeline.output.tar_writer import TarWriter
from pipeline.sources.tar.members import DamagedTar, members, read_content


def write(path: Path, contents: dict[str, bytes]) -> tuple[str, int, dict[str, int]]:
    with TarWriter(path) as tar:
        offsets = {name: tar.add(name, content) for name, content in contents.items()}
        sha256, size_bytes = tar.close()
    return sha256, size_bytes, offsets


CONTENTS = {"a.npy": b"x" * 700, "a.json": b"{}", "b.npy": b"", "b.json": b"y" * 512}


def read(data: bytes) -> dict[str, bytes]:
    file = io.BytesIO(data)
    return {member.name: read_content(file, member) for member in members(file) if member.is_plain_file}


def test_offsets_hash_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    sha256, size_bytes, offsets = write(tmp_path / "t.tar", CONTENTS)
    data = (tmp_path / "t.tar").read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256 and len(data) == size_bytes
    for name, content in CONTENTS.items():
        assert data[offsets[name] : offsets[name] + len(content)] == content
    with tarfile.open(tmp_path / "t.tar") as tar:
        assert tar.getnames() == list(CONTENTS)
    assert read(data) == CONTENTS


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "1.tar", CONTENTS)[0] == write(tmp_path / "2.tar", CONTENTS)[0]


@pytest.mark.parametrize(
    "damage", ["cut between members", "cut in a header", "cut in data", "one header byte", "cut before the end"]
)
def test_damage_that_pythons_tarfile_takes_for_the_end_is_found(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "t.tar", CONTENTS)
    data = bytearray((tmp_path / "t.tar").read_bytes())
    second = 512 + 1024  # header and data of the first member
    if damage == "cut between members":
        data = data[:second]
    elif damage == "cut in a header":
        data = data[: second + 100]
    elif damage == "cut in data":
        data = data[: 512 + 300]
    elif damage == "one header byte":
        data[second + 10] ^= 1
    else:
        data = data[: second + 1024 + 512 + 1024]
    with pytest.raises(DamagedTar):
        read(bytes(data))
