"""The members of a tar, read strictly and in bounded memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Self

BLOCK_BYTES = tarfile.BLOCKSIZE

MAX_HEADER_BYTES = 1 << 20
"""Of a header that only holds a name or pax records."""

NAMES_AND_RECORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class DamagedTar(tarfile.TarError):
    """The archive ends early or has a bad header. Python's tarfile takes both for its regular end."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is read within bounds: Python's own parser can be made to loop, to count backwards (a negative
    size), and to take whatever memory and time a header asks for."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two zero blocks: the regular end
        except tarfile.HeaderError as error:
            raise DamagedTar(f"bad or missing header at byte {tar.offset}: {error}") from error

    def _proc_member(self, tar: Any) -> Any:
        if self.type in NAMES_AND_RECORDS and self.size > MAX_HEADER_BYTES:
            raise DamagedTar(f"a header of {self.size} bytes at byte {tar.offset}; the limit is {MAX_HEADER_BYTES}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _block(self, count: int) -> int:
        if count < 0:
            raise DamagedTar(f"a member of {count} bytes")
        return -(-count // BLOCK_BYTES) * BLOCK_BYTES

    def _proc_pax(self, tar: Any) -> _StrictTarInfo:
        """The member that pax records stand before, with its name and size from them."""
        records = _pax_records(tar.fileobj.read(self._block(self.size))[: self.size])
        try:
            member = self.fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise DamagedTar(f"no member follows the records at byte {self.offset}") from None
        if self.type == tarfile.XGLTYPE:
            if records.keys() & {"path", "size"}:
                raise DamagedTar("one name or size is stated for all members")
            return member
        member.name = records.get("path", member.name).rstrip("/")
        if any(name.startswith("GNU.sparse.") for name in records):
            member.sparse = b""
        if "size" in records:
            member.size = int(records["size"])
            tar.offset = member.offset_data + (member._block(member.size) if member.has_data else 0)
        return member

    @property
    def has_data(self) -> bool:
        """Whether blocks of data follow the header."""
        return self.isreg() or self.type not in tarfile.SUPPORTED_TYPES

    def _proc_sparse(self, tar: Any) -> _StrictTarInfo:
        """A GNU sparse member: its map is passed over, since such members are not read."""
        _, extended, size = self._sparse_structs  # type: ignore[attr-defined]
        while extended:
            block = tar.fileobj.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise DamagedTar("the archive ends in a sparse map")
            extended = bool(block[504])
        self.sparse = b""
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)
        self.size = size
        return self


def _pax_records(data: bytes) -> dict[str, str]:
    """Records ``length keyword=value\\n``; DamagedTar where they do not fill the header exactly."""
    records = {}
    while data:
        length, space, _ = data[:8].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 < int(length) <= len(data):
            raise DamagedTar("bad length of a pax record")
        keyword, equals, value = data[len(length) + 1 : int(length)].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedTar("bad pax record")
        records[keyword.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every member of an uncompressed tar in order, with a reader of its content (None if it is no regular file, or
    sparse).

    Reads ``file``, which can seek, from front to back. Raises tarfile.TarError (also out of the readers) where the
    archive is cut or a header does not check. Bytes of names that are not UTF-8 become surrogates.
    """
    try:
        with tarfile.open(
            fileobj=file, mode="r:", tarinfo=_StrictTarInfo, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while (info := tar.next()) is not None:
                yield info, tar.extractfile(info) if info.isreg() and not info.issparse() else None
                tar.members.clear()  # type: ignore[attr-defined]  # else every member's header stays in memory
    except (ValueError, OverflowError, RecursionError) as error:
        raise DamagedTar(f"a header that makes no sense ({type(error).__name__})") from error


def split_name(name: str) -> tuple[str, str]:
    """A member's key and suffix, as webdataset splits them: at the first dot after the last slash. Dots that a name
    begins with, which webdataset passes over, belong to the key."""
    folder, slash, base = name.rpartition("/")
    plain = base.lstrip(".")
    stem, _, suffix = plain.partition(".")
    return folder + slash + base[: len(base) - len(plain)] + stem, suffix.lower()


def printable(name: str) -> str:
    """The name as it is, or with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
