"""Reads the members of a tar strictly, and in bounded memory.

The standard library's tarfile takes a cut or damaged archive for its regular end, and a hostile header can make it loop,
seek backwards or allocate as much as the header asks for. This parser of 512-byte headers refuses such archives. It
reads the formats ustar, GNU and pax (POSIX.1-2001, ``pax``, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK_BYTES = 512
HALF_BYTES = 256
NO_HEADER = bytes(BLOCK_BYTES)
MAX_EXTENSION_BYTES = 1 << 20
"""Largest content of a header that holds a long name or pax records."""
PART_BYTES = 4 << 20
"""Bytes of a member that are read at a time."""
MAX_MEMBER_BYTES = 1 << 62
ZEROS_AT_ONCE_BYTES = 1 << 20
"""Bytes that are read at a time behind the end mark of an archive."""

REGULAR, OLD_REGULAR, CONTIGUOUS = b"0", b"\0", b"7"
FOLDER, GNU_SPARSE = b"5", b"S"
WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", FOLDER, b"6"})
"""Links, devices, folders and pipes. Members of unknown types have content, so that it can be passed over."""
LONG_NAME, LONG_LINK = b"L", b"K"
PAX, OLD_PAX, PAX_GLOBAL = b"x", b"X", b"g"
EXTENSIONS = frozenset({LONG_NAME, LONG_LINK, PAX, OLD_PAX, PAX_GLOBAL})
"""Types of headers that describe the members after them."""


class DamagedTar(Exception):
    """The archive ends early, or one of its headers is not valid."""


class DataAfterEnd(DamagedTar):
    """The data behind the end mark is no archive, or cannot be read. All members are whole."""


class Member(NamedTuple):
    """One entry of a tar. A tuple, since a tar may have millions of them."""

    name: str
    """Bytes that are not UTF-8 are surrogates."""
    type: bytes
    """Type flag of the header."""
    size_bytes: int
    """Size of the content in the archive."""
    offset: int
    """Offset in the archive of the member's first header, which may be a long name or pax records."""
    content_offset: int
    is_sparse: bool
    """True if the content is the parts of a sparse file, in any of GNU's formats."""

    @property
    def is_folder(self) -> bool:
        """Return whether the member is a folder."""
        return self.type == FOLDER

    @property
    def is_plain_file(self) -> bool:
        """Return whether the content is that of a file: not a link, device, folder, sparse file or unknown type."""
        return self.type in (REGULAR, OLD_REGULAR, CONTIGUOUS) and not self.is_sparse


class _Header(NamedTuple):
    """One block of 512 bytes."""

    name: str
    type: bytes
    size_bytes: int
    has_sparse_map: bool
    """True if blocks of an old GNU sparse map come between the header and the content."""


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield every member of an uncompressed tar in order. DamagedTar if the archive is cut or a header is not valid.

    Goes through ``file`` from front to back. The content of a member may be read before the next member is requested.
    Members of further archives behind the end mark follow, as in tars that were joined with ``cat``.
    """
    offset: int | None = 0
    end_mark = None
    while offset is not None:
        try:
            member = _next_member(file, offset)
        except DamagedTar as error:
            if offset == end_mark:
                raise DataAfterEnd(f"data that is no tar follows the end mark: {error}") from None
            raise
        if member is None:
            try:
                offset = end_mark = _after_zeros(file, offset)
            except DamagedTar as error:  # of the compressed file around it
                raise DataAfterEnd(f"behind the end mark: {error}") from None
            continue
        yield member
        has_content = member.type not in WITHOUT_CONTENT
        offset = member.content_offset + (_padded(member.size_bytes) if has_content else 0)


def is_header(block: bytes) -> bool:
    """Return whether a block of 512 bytes is a tar header, or the zeros that end an empty archive."""
    if len(block) < BLOCK_BYTES:
        return False
    try:
        _parse_header(block, 0)
    except DamagedTar:
        return False
    return True


def read_content(file: IO[bytes], member: Member) -> bytes:
    """The content of a member of ``file``. DamagedTar if the archive ends in it."""
    file.seek(member.content_offset)
    return _read(file, member.size_bytes)


def read_parts(file: IO[bytes], member: Member) -> Iterator[bytes]:
    """The content of a member in parts of bounded size. DamagedTar if the archive ends in it."""
    file.seek(member.content_offset)
    for start in range(0, member.size_bytes, PART_BYTES):
        yield _read(file, min(PART_BYTES, member.size_bytes - start))


def split_name(name: str) -> tuple[str, str]:
    """A member's key and suffix, split like webdataset does: at the first dot after the last slash.

    Dots at the start of the file's name belong to the key; webdataset skips such members.
    """
    folder, slash, base = name.rpartition("/")
    plain = base.lstrip(".")
    stem, _, suffix = plain.partition(".")
    return folder + slash + base[: len(base) - len(plain)] + stem, suffix.lower()


def printable(name: str) -> str:
    """The name, with escapes in the place of bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _next_member(file: IO[bytes], offset: int) -> Member | None:
    """The member whose headers start at ``offset``; None at the block of zeros that ends an archive."""
    extensions: dict[bytes, bytes] = {}
    first_offset, is_first = offset, True
    while True:
        file.seek(offset)
        header = _parse_header(_read(file, BLOCK_BYTES), offset)
        if header is None and is_first:
            return None
        if header is None:
            raise DamagedTar(f"no member follows the extension header before byte {offset}")
        if header.type not in EXTENSIONS:
            return _member(file, header, extensions, first_offset, offset + BLOCK_BYTES)
        if header.size_bytes > MAX_EXTENSION_BYTES:
            raise DamagedTar(
                f"an extension header of {header.size_bytes} bytes at byte {offset}; the limit is {MAX_EXTENSION_BYTES}"
            )
        if header.type in extensions:
            raise DamagedTar(f"a second header of type '{header.type.decode()}' for one member at byte {offset}")
        content = _read(file, _padded(header.size_bytes))[: header.size_bytes]
        offset += BLOCK_BYTES + _padded(header.size_bytes)
        is_first = False
        if header.type != PAX_GLOBAL:
            extensions[header.type] = content
            continue
        if _pax_records(content).keys() & {"path", "size"}:
            raise DamagedTar("a pax header states one name or size for all members")
        if not extensions:
            first_offset = offset


def _after_zeros(file: IO[bytes], offset: int) -> int | None:
    """Offset of the first block from ``offset`` on that is not all zeros; None if there is none."""
    file.seek(offset)
    while data := file.read(ZEROS_AT_ONCE_BYTES):
        if rest := data.lstrip(b"\0"):
            return offset + (len(data) - len(rest)) // BLOCK_BYTES * BLOCK_BYTES
        offset += len(data)
    return None


def _member(
    file: IO[bytes], header: _Header, extensions: dict[bytes, bytes], first_offset: int, content_offset: int
) -> Member:
    """The member that a header and the extension headers before it describe."""
    records = _pax_records(extensions.get(OLD_PAX, b"")) | _pax_records(extensions.get(PAX, b"")) if extensions else {}
    name = _text(extensions[LONG_NAME]) if LONG_NAME in extensions else header.name
    name = records.get("path", name)
    # archives from before ustar mark folders by a slash; it counts in the whole name, not in a name cut to 100 bytes
    type_ = FOLDER if header.type == OLD_REGULAR and name.endswith("/") else header.type
    if header.has_sparse_map:
        content_offset += _sparse_map_bytes(file)
    return Member(
        name=name.rstrip("/") if type_ == FOLDER or "path" in records else name,
        type=type_,
        size_bytes=_pax_size(records["size"]) if "size" in records else header.size_bytes,
        offset=first_offset,
        content_offset=content_offset,
        is_sparse=header.type == GNU_SPARSE or any(keyword.startswith("GNU.sparse.") for keyword in records),
    )


def _parse_header(block: bytes, offset: int) -> _Header | None:
    """The header in a block, with byte ranges as in POSIX.1-2001; None if the block is all zeros."""
    if block == NO_HEADER:
        return None
    _check_checksum(block, offset)
    type_ = block[156:157]
    name = _text(block[:100])
    is_gnu = block[257:265] == b"ustar  \0"  # GNU headers have times in the place of the prefix
    prefix = _text(block[345:500]) if block[257:262] == b"ustar" and not is_gnu else ""
    size_bytes = _number(block[124:136], offset)
    if size_bytes > MAX_MEMBER_BYTES:
        raise DamagedTar(f"a member of {size_bytes} bytes at byte {offset}")
    has_sparse_map = type_ == GNU_SPARSE and bool(block[482])
    name = f"{prefix}/{name}" if prefix else name
    return _Header(name=name, type=type_, size_bytes=size_bytes, has_sparse_map=has_sparse_map)


def _check_checksum(block: bytes, offset: int) -> None:
    """Raise DamagedTar unless a header states the sum of its bytes, taken with spaces in place of the checksum."""
    stated = _number(block[148:156], offset)
    summed = block[:148] + b" " * 8 + block[156:]
    if stated == _sum(summed[:HALF_BYTES]) + _sum(summed[HALF_BYTES:]):
        return
    # some old programs add signed characters
    if stated != sum(summed) - 256 * sum(byte > 127 for byte in summed):
        raise DamagedTar(f"the header at byte {offset} does not match its checksum")


def _sum(half: bytes) -> int:
    """The sum of half a block. It is below Adler-32's modulus of 65,521, whose low half is 1 more than the sum."""
    return (zlib.adler32(half) & 0xFFFF) - 1


def _number(field: bytes, offset: int) -> int:
    """A number in octal digits, or in base 256 after a byte 0x80. DamagedTar for others, which include negative ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise DamagedTar(f"the header at byte {offset} has a number that is not valid")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    """The text before the first NUL."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse pax records ``length keyword=value\\n``. DamagedTar unless they fill the content exactly."""
    records = {}
    start = 0
    while start < len(content):
        length, space, _ = content[start : start + 8].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 < int(length) <= len(content) - start:
            raise DamagedTar("a pax record has a length that is not valid")
        keyword, equals, value = content[start + len(length) + 1 : start + int(length)].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedTar("a pax record is not valid")
        records[keyword.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        start += int(length)
    return records


def _pax_size(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= MAX_MEMBER_BYTES):
        raise DamagedTar("a pax record has a size that is not valid")
    return int(value)


def _sparse_map_bytes(file: IO[bytes]) -> int:
    """Read the blocks that continue the map of an old GNU sparse member; their size."""
    num_blocks = 1
    while _read(file, BLOCK_BYTES)[504]:
        num_blocks += 1
    return num_blocks * BLOCK_BYTES


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _read(file: IO[bytes], size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) < size_bytes:
        raise DamagedTar("the archive ends before its last member does")
    return data
