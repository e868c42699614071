"""Captions of items that a table describes."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ConfigError, Reject
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.manifest.captions import texts_of
from pipeline.sources.sidecars import CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS
from pipeline.storage.urls import canonical


def caption_column(names: list[str], recipe: Recipe, url: str) -> str | None:
    """The column with captions: the recipe's, or the only one with a usual name. ConfigError if the choice is not clear."""
    choices = [(recipe.caption_column,)] if recipe.caption_column else [CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS]
    matches: list[str] = []
    while choices and not matches:
        wanted = choices.pop(0)
        matches = [name for name in names if name in wanted] or [name for name in names if name.casefold() in wanted]
    if len(matches) > 1 or (recipe.caption_column and not matches):
        raise ConfigError(
            f"'{canonical(url)}': expected one caption column named {' or '.join(wanted)}, "
            f"found {matches or 'none'} among {names}; say which with --caption-column"
        )
    return matches[0] if matches else None


def set_caption(item: Item, caption: Any) -> None:
    """Set an item's captions from a value of a table: a text, several texts, or nothing. A fault if it is not UTF-8."""
    try:
        texts = texts_of(caption, spelled_lists=False)
    except UnicodeDecodeError:
        item.fault = item.fault or Reject("read", "bad_sidecar", "its caption is not UTF-8")
        return
    item.caption = texts[0] if texts else None
    item.captions = texts if len(texts) > 1 else None
