"""One item of a source: a video or image, with what the source says about it.

A problem with one item becomes that item's reject. A source that is not as planned stops the job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import Reject
from pipeline.storage.held_file import HeldFile
from pipeline.storage.urls import FileFacts

VIDEO_SUFFIXES = frozenset("mp4 m4v mov mkv webm avi ts mts m2ts mpg mpeg flv ogv wmv asf 3gp".split())

IMAGE_SUFFIXES = frozenset("jpg jpeg png apng webp gif heic heif avif".split())

MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES

SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
"""Files that operating systems leave in folders, in lower case."""


def is_system_file(path: str) -> bool:
    """Return whether an operating system made the file: macOS's ``._*`` and ``__MACOSX/``, or one of ``SYSTEM_FILES``.

    Sources pass over such files.
    """
    *folders, name = path.split("/")
    return name.startswith("._") or name.lower() in SYSTEM_FILES or "__MACOSX" in folders


@dataclass(kw_only=True, slots=True)
class Item:
    """A video or image in a source."""

    ordinal: int
    """Position in the source, counted from 0 over all of its units."""
    key: str
    """Name of the item in its source."""
    uri: str
    """URL of the item without credentials or query, for the samples' metadata."""
    caption: str | None = None
    """The caption; the first one, if there are several."""
    captions: list[str] | None = None
    """All captions, if there are several."""
    range: tuple[float, float | None] | None = None
    """Start and end of the item in its file, in the unit of ``Recipe.range_unit``; None for the whole file.

    Both count from the first shown frame. An end of None is the end of the file.
    """
    note: str | None = None
    """Name of a change that reading made to the item's metadata, such as ``sidecars.NAN_TO_NULL``; None for no change."""
    meta: dict[str, Any] = field(default_factory=dict)
    """User columns, by column name."""
    facts: FileFacts | None = None
    """Size and entity tag of the file that holds the item; None if they are only known once it is opened."""
    content: bytes | HeldFile | None = field(default=None, repr=False)
    """The item's bytes, if reading the source gave them. Large ones are a file, which ``fetch`` hands out once."""
    location: str = field(default="", repr=False)
    """URL to fetch the item from if it has no content. It may carry a signature."""
    fault: Reject | None = None
    """Reject of an item that cannot be opened."""
    end_byte: int = 0
    """Byte of the source's file where the item ends. Set only by formats that do not count their items in advance."""
    trusted: bool = True
    """True if the user named the item. An item that a manifest names may not be in a private network."""
    only_rows_name_store: bool = False
    """True if rows of a manifest name the item's store, and the manifest itself lies in another one."""
