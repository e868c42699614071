"""The items of a unit: what a tar, a folder or a manifest's rows hold, opened one by one.

Whatever is wrong with one item is that item's reject; a source that is not as planned stops the job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import Reject
from pipeline.storage.urls import FileFacts

VIDEO_SUFFIXES = frozenset("mp4 m4v mov mkv webm avi ts mts m2ts mpg mpeg flv ogv wmv asf 3gp".split())

IMAGE_SUFFIXES = frozenset("jpg jpeg png webp".split())

MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


@dataclass(kw_only=True, slots=True)
class Item:
    """A video or image in a source."""

    ordinal: int
    key: str
    uri: str
    caption: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """User columns, by column name."""
    facts: FileFacts | None = None
    """Of the file it came in; None until it is opened, for the targets of manifests."""
    content: bytes | None = field(default=None, repr=False)
    location: str = field(default="", repr=False)
    """URL to open it at, where it has no content yet; may carry a signature."""
    fault: Reject | None = None
    """Why there is nothing to open."""
    end_byte: int = 0
    """Where the next item's first header is, in a tar."""
    trusted: bool = True
    """Whether the user named it; what a manifest names may not be in a private network."""
