"""Tars in which a sample is a few members with one key, as webdataset and Energon read them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True, slots=True)
class TarMember:
    """The place of one member's content in a tar, in bytes."""

    suffix: str
    """Part of the name behind the sample's key and a dot."""
    offset: int
    size: int


class SampleTar:
    """A tar that gives equal bytes for equal samples. Use it as a context."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> SampleTar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()

    @property
    def end(self) -> int:
        """Offset in bytes where the next sample begins."""
        return int(self._tar.offset)

    def add(self, key: str, members: Mapping[str, bytes]) -> list[TarMember]:
        """Add a sample, and return where its members lie. The key must hold no dot.

        members: their content by what follows the key and a dot.
        """
        places = []
        for suffix, content in members.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = len(content)
            places.append(TarMember(suffix, self.end + tarfile.BLOCKSIZE, len(content)))
            self._tar.addfile(info, io.BytesIO(content))
        return places
