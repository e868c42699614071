"""Our parser of tar headers beside Python's: equal members where an archive is valid, DamagedTar where it is not."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.sources.tar.members import DamagedTar, members, read_content

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
TYPES += [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"]


@dataclass(frozen=True)
class Entry:
    """A member to write."""

    name: str
    type: bytes
    content: bytes
    link: str
    mtime: float
    headers: dict[str, str]


PARTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=30)
LONG_PARTS = PARTS | st.integers(60, 200).map(lambda length: "n" * length)
NAMES = st.lists(LONG_PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.builds(
    Entry,
    name=NAMES,
    type=st.sampled_from(TYPES),
    content=st.binary(max_size=1200),
    link=NAMES,
    mtime=st.sampled_from([0.0, 1.5, 2.0**40]),
    headers=st.dictionaries(st.sampled_from(["comment", "LIBARCHIVE.creationtime"]), PARTS, max_size=2),
)


def write(entries: list[Entry], tar_format: int, comment: str) -> bytes:
    """The archive of the entries that the format can hold."""
    buffer = io.BytesIO()
    headers = {"comment": comment} if comment and tar_format == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format, pax_headers=headers, encoding="utf-8") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mtime = entry.type, entry.link, entry.mtime
            if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, b"Z"):
                info.size = len(entry.content)
            if tar_format == tarfile.PAX_FORMAT:
                info.pax_headers = dict(entry.headers)
            try:
                tar.addfile(info, io.BytesIO(entry.content))
            except ValueError:  # ustar has no place for a long name or a large number
                continue
    return buffer.getvalue()


def read_ours(data: bytes) -> list[tuple[str, bytes, int, int, int, bytes | None]]:
    file = io.BytesIO(data)
    return [
        (
            member.name,
            member.type,
            member.size_bytes,
            member.offset,
            member.content_offset,
            read_content(file, member) if member.is_plain_file else None,
        )
        for member in members(file)
    ]


def read_pythons(data: bytes) -> list[tuple[str, bytes, int, int, int, bytes | None]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() and not info.issparse() else None
            fields = info.name, info.type, info.size, info.offset, info.offset_data
            found.append((*fields, content.read() if content else None))
    return found


@settings(max_examples=300)
@given(entries=st.lists(ENTRIES, min_size=1, max_size=5), tar_format=st.sampled_from(sorted(FORMATS)), comment=PARTS)
def test_members_are_the_ones_that_pythons_tarfile_finds(entries: list[Entry], tar_format: str, comment: str) -> None:
    # tarfile takes a file of an old type for a folder if its long name, cut to 100 bytes, ends with a slash
    assume(not any(entry.type == tarfile.AREGTYPE and len(entry.name.encode()) > 100 for entry in entries))
    data = write(entries, FORMATS[tar_format], comment)
    assert read_ours(data) == read_pythons(data)


@settings(max_examples=300)
@given(
    entries=st.lists(ENTRIES, min_size=1, max_size=3),
    tar_format=st.sampled_from(sorted(FORMATS)),
    changes=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255)), max_size=4),
    length=st.none() | st.integers(0, 20_000),
)
def test_a_damaged_archive_gives_members_or_an_error_and_never_anything_else(
    entries: list[Entry], tar_format: str, changes: list[tuple[int, int]], length: int | None
) -> None:
    data = bytearray(write(entries, FORMATS[tar_format], ""))
    for position, change in changes:
        data[position % len(data)] ^= change
    try:
        read_ours(bytes(data[:length]))
    except DamagedTar:
        return


@pytest.mark.parametrize("tar_format", sorted(FORMATS))
def test_an_archive_cut_anywhere_before_its_end_is_damaged(tar_format: str) -> None:
    entries = [Entry(f"{'folder/' * 20}{i}.mp4", tarfile.REGTYPE, b"x" * 700, "", 0.0, {}) for i in range(2)]
    data = write(entries, FORMATS[tar_format], "")
    end = data.rindex(b"x") // 512 * 512 + 512  # the zeros from here on end the archive
    assert len(read_ours(data[: end + 512])) == 2
    for length in range(0, end + 1, 100):
        with pytest.raises(DamagedTar):
            read_ours(data[:length])


def test_a_size_above_eight_gibibytes_is_read_in_base_256_and_from_pax_records() -> None:
    for tar_format in ("gnu", "pax"):
        info = tarfile.TarInfo("large.mp4")
        info.size = 10 << 30
        found = members(io.BytesIO(info.tobuf(FORMATS[tar_format])))
        member = next(found)
        assert (member.name, member.size_bytes) == ("large.mp4", 10 << 30)
        with pytest.raises(DamagedTar, match="ends before its last member"):
            next(found)


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_a_long_name_is_not_a_folder_because_of_where_its_header_cuts_it(tar_format: str) -> None:
    name = "n" * 99 + "/a.mp4"
    data = write([Entry(name, tarfile.AREGTYPE, b"video", "", 0.0, {})], FORMATS[tar_format], "")
    assert [(member[0], member[-1]) for member in read_ours(data)] == [(name, b"video")]


def test_times_in_a_gnu_header_are_not_taken_for_the_start_of_a_name() -> None:
    block = bytearray(tarfile.TarInfo("a.mp4").tobuf(tarfile.GNU_FORMAT))
    block[345:357] = b"14000000000\0"  # the time of the last access, in archives made with --listed-incremental
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert [member[0] for member in read_ours(bytes(block) + bytes(1024))] == ["a.mp4"]


def test_small_records_that_fill_a_header_take_no_more_time_than_large_ones() -> None:
    records = b"5 a=\n" * 200_000
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    member = tarfile.TarInfo("a.mp4").tobuf(tarfile.USTAR_FORMAT)
    data = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + member + bytes(1024)
    assert [name for name, *_ in read_ours(data)] == ["a.mp4"]
