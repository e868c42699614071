"""Finds members of a sample that stand apart in a tar, by reading the tar's headers before its contents.

A run is a sequence of adjacent members with one key. Most tars have one run per key, which holds a video and its caption.
The headers of the whole tar are read, once, only when a run has no caption or no media.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from pipeline.errors import Reject
from pipeline.sources.item import MEDIA_SUFFIXES, is_system_file
from pipeline.sources.sidecars import is_sidecar
from pipeline.sources.tar.members import DamagedTar, Member, members, split_name

MAX_RUNS = 1 << 18
"""Number of runs, from the tar's start, whose members are found anywhere in the tar. They take about 150 MB."""
MAX_TEXTS = 100
"""Number of text members of one run that can be joined to another run."""
BLOCK_BYTES = 64 << 10
"""Bytes that one request for headers asks for."""


class Text(NamedTuple):
    """A text or JSON member."""

    suffix: str
    content_offset: int
    size_bytes: int


class Run(NamedTuple):
    """Adjacent members that share a key."""

    offset: int
    """Offset of the first member's first header."""
    has_media: bool
    texts: tuple[Text, ...]


class MembersApart:
    """The keys of a tar that have several runs. Reads the tar's headers when a method first needs them.

    open_tar: opens the plain tar anew; it gets the number of bytes that one request should ask for.
    """

    def __init__(self, open_tar: Callable[[int], IO[bytes]]) -> None:
        self._open_tar = open_tar
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._runs: dict[str, list[Run]] = {}
        self._joined: set[str] = set()

    def __enter__(self) -> MembersApart:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.close()

    @property
    def is_known(self) -> bool:
        """Return whether the headers were read already."""
        return self._file is not None

    def texts_to_join(self, key: str, offset: int) -> list[Text] | None:
        """Text members to add to the run at ``offset``, which has media. None if they could belong to several runs."""
        others = [run for run in self._runs_of(key) if run.offset != offset]
        if not any(run.texts for run in others if not run.has_media):
            return []
        if self._owner(key) != offset:
            return None
        self._joined.add(key)
        return [text for run in others for text in run.texts]

    def is_joined_elsewhere(self, key: str, offset: int) -> bool:
        """Return whether the run at ``offset``, which has no media, is or will be joined to a run that has."""
        owner = self._owner(key)
        return owner is not None and (owner > offset or key in self._joined)

    def fault(self, key: str, *, with_media: bool) -> Reject | None:
        """The reject of a run that cannot be joined. ``with_media``: only if another run of the key has media."""
        if with_media and not any(run.has_media for run in self._runs_of(key)):
            return None
        message = "members with this key stand apart in the tar, and it is not clear which of them are one sample"
        return Reject("read", "members_apart", message)

    def read(self, text: Text) -> bytes:
        """The content of a text member."""
        assert self._file is not None
        self._file.seek(text.content_offset)
        content = self._file.read(text.size_bytes)
        if len(content) < text.size_bytes:
            raise DamagedTar(f"the archive ends inside a member '.{text.suffix[:200]}'")
        return content

    def _owner(self, key: str) -> int | None:
        """Offset of the run that the other runs of a key belong to: the only one with media, if no suffix occurs twice."""
        runs = self._runs_of(key)
        owners = [run.offset for run in runs if run.has_media]
        suffixes = [text.suffix for run in runs for text in run.texts]
        return owners[0] if len(owners) == 1 and len(set(suffixes)) == len(suffixes) else None

    def _runs_of(self, key: str) -> list[Run]:
        """The runs of a key, in order; empty if the key has one run."""
        if self._file is None:
            self._file = self._files.enter_context(self._open_tar(BLOCK_BYTES))
            self._read_headers(self._file)
        return self._runs.get(key, [])

    def _read_headers(self, file: IO[bytes]) -> None:
        """Find the runs of every key, up to ``MAX_RUNS``. A damaged tar counts up to its damage."""
        found: dict[str, list[Run]] = {}
        run: list[tuple[str, Member]] = []
        num_runs, last_key = 0, ""
        with contextlib.suppress(DamagedTar):
            for member in members(file):
                if member.is_folder or is_system_file(member.name):
                    continue
                key, suffix = split_name(member.name)
                if run and (key != last_key or suffix in (other for other, _ in run)):
                    num_runs += _add_run(found, last_key, run, is_full=num_runs >= MAX_RUNS)
                    run = []
                last_key = key
                if len(run) <= MAX_TEXTS:
                    run.append((suffix, member))
        if run:
            _add_run(found, last_key, run, is_full=num_runs >= MAX_RUNS)
        self._runs = {key: runs for key, runs in found.items() if len(runs) > 1}


def _add_run(found: dict[str, list[Run]], key: str, run: list[tuple[str, Member]], *, is_full: bool) -> bool:
    """Add a run to ``found``. If that is full, only to keys that it has, up to ``MAX_TEXTS`` runs. Return whether it was."""
    if is_full and len(found.get(key, [])) not in range(1, MAX_TEXTS):
        return False
    texts = (
        Text(suffix, member.content_offset, member.size_bytes)
        for suffix, member in run
        if is_sidecar(suffix) and member.is_plain_file
    )
    has_media = any(suffix.rpartition(".")[2] in MEDIA_SUFFIXES for suffix, _ in run)
    found.setdefault(key, []).append(Run(run[0][1].offset, has_media, tuple(texts)))
    return True
