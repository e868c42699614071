"""Says what is at a URL instead of videos: tars, manifests, archives, or files that are not read."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from pipeline.sources.manifest import ManifestFormat
from pipeline.sources.tar import TarFormat
from pipeline.storage.urls import canonical, suffix_of

COMPRESSED = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "lz4": "unlz4"}
"""Suffixes of compressed files, and the programs that decompress them."""
ARCHIVES = frozenset({"zip", "7z", "rar"})
SHOWN_SUFFIXES = 5
"""Number of suffixes that a message lists, the most frequent first."""


class Contents:
    """Counts the files of a folder by suffix."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._lance_table = ""

    def add(self, path: str) -> None:
        """Count a file, given by its path in the folder."""
        table, in_table, _ = path.partition(".lance/")
        if in_table:
            self._lance_table = self._lance_table or f"{table}.lance"
            return
        suffix = full_suffix(path)
        self._counts[suffix] += 1
        self._first.setdefault(suffix, path)

    def hint(self, url: str) -> str:
        """The end of a message that a folder has no videos: what it holds, and which of that to give instead."""
        if not self._counts and not self._lance_table:
            return "; it is empty"
        hints = []
        for suffixes, noun in ((TarFormat.suffixes, "tars"), (ManifestFormat.suffixes - {"json"}, "manifests")):
            for suffix in sorted(suffixes & self._counts.keys()):
                folder, _, name = self._first[suffix].rpartition("/")
                wanted = name if noun == "manifests" and self._counts[suffix] == 1 else f"*.{suffix}"
                hints.append(f"it holds {noun}: give '{'/'.join(filter(None, (canonical(url), folder, wanted)))}'")
        if self._lance_table:
            hints.append(f"it holds Lance tables: give '{canonical(url)}/{self._lance_table}'")
        others = [(suffix, count) for suffix, count in self._counts.most_common() if not hints or advice_for(suffix)]
        if others:
            advice = next((f": {text}" for suffix, _ in others if (text := advice_for(suffix))), "")
            listed = ", ".join(f"{count} {_shown(suffix)}" for suffix, count in others[:SHOWN_SUFFIXES])
            more = f" and {len(others) - SHOWN_SUFFIXES} more kinds of files" if len(others) > SHOWN_SUFFIXES else ""
            hints.append(f"it holds {listed}{more}{advice}")
        return "; " + "; ".join(hints)


def full_suffix(path: str) -> str:
    """The suffix of a path without the first dot, in lower case; both suffixes of a compressed file, as in ``tar.gz``."""
    last = suffix_of(path)
    inner = suffix_of(PurePosixPath(path).stem) if last in COMPRESSED else ""
    return f"{inner}.{last}" if inner.isalpha() and len(inner) <= len("parquet") else last


def advice_for(suffix: str) -> str:
    """How to make a source of a file with this suffix, as ``full_suffix`` gives it; empty if nothing is known."""
    last = suffix.rpartition(".")[2]
    if last in COMPRESSED:
        return f"decompress it first ({COMPRESSED[last]})"
    return "unpack it and give the folder" if last in ARCHIVES else ""


def not_read(url: str, readable: list[str]) -> str:
    """The message for a file that exists but is of no format that is read. ``readable``: suffixes that are."""
    suffix = full_suffix(canonical(url))
    name = f".{suffix}" if suffix else "a file without a suffix"
    advice = advice_for(suffix)
    return (
        f"there is a file at '{canonical(url)}', but {name} is not read{advice and f': {advice}'}; "
        f"sources are folders and files with the suffixes {', '.join(readable)}"
    )


def _shown(suffix: str) -> str:
    return f".{suffix}" if suffix else "without a suffix"
