"""Bounds the captions and user columns of a unit, whose rows repeat those of their item."""

from __future__ import annotations

import dataclasses

from pipeline.errors import Reject
from pipeline.sources.item import Item
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow

MAX_UNIT_TEXT_BYTES = 512 << 20
"""Texts that the rows of a unit may have. Arrow joins a column's texts up to 2 GB only, and an encoder holds them several
times."""


class UnitText:
    """The texts of a unit's rows so far, counted in the order in which they are decoded."""

    def __init__(self) -> None:
        self._size_bytes = 0

    def takes(self, item: Item) -> bool:
        """Return whether there is room for another row of an item, and count it."""
        size_bytes = _size_of([item.key, item.uri, item.caption, item.captions, item.meta])
        if self._size_bytes + size_bytes > MAX_UNIT_TEXT_BYTES:
            return False
        self._size_bytes += size_bytes
        return True


def without_text(item: Item) -> Item:
    """The item without captions and user columns."""
    return dataclasses.replace(item, caption=None, captions=None, meta=dict.fromkeys(item.meta), content=None)


def too_much_text(outcome: Outcome) -> RejectedWindow:
    """The reject of a window whose texts do not fit its unit any more."""
    message = (
        f"the captions and metadata of the rows before it fill the {MAX_UNIT_TEXT_BYTES >> 20} MB of its unit; shorten "
        "them, or lower --unit-clips"
    )
    reject = Reject("encode", "too_much_text", message)
    if isinstance(outcome, Clip):
        return RejectedWindow.of(outcome.window, reject)
    return RejectedWindow(index=outcome.index, reject=reject, scene=outcome.scene, group=outcome.group)


def _size_of(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)  # characters, which have one to four bytes
    if isinstance(value, dict):
        return sum(map(_size_of, value.values()))
    return sum(map(_size_of, value)) if isinstance(value, list | tuple) else 8
