"""Tars in which a sample is a few members with one key, as webdataset and Energon read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.output.tar_writer import TarWriter, member_bytes


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
        self._tar = TarWriter(path)
        self.end = 0
        """Offset in bytes where the next sample begins."""

    def __enter__(self) -> SampleTar:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        with self._tar:  # closes the file in any case
            if error_type is None:
                self._tar.close()

    def add(self, key: str, members: Mapping[str, bytes]) -> list[TarMember]:
        """Add a sample, and return where its members lie. The key must hold no dot.

        members: their content by what follows the key and a dot.
        """
        places = []
        for suffix, content in members.items():
            places.append(TarMember(suffix, self._tar.add(f"{key}.{suffix}", content), len(content)))
            self.end += member_bytes(len(content))
        return places
