"""Captions of items that a table describes."""

from __future__ import annotations

from typing import Any

from pipeline.sources.item import Item


def set_caption(item: Item, caption: Any) -> None:
    """Set an item's caption from a value of a table: text, or the first of several texts."""
    if isinstance(caption, list):
        caption = caption[0] if caption else None
    item.caption = None if caption is None else str(caption)
