"""Groups the items of one file, which is fetched and decoded once, and picks the windows that are to be retried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from pipeline.errors import Reject
from pipeline.sources.item import Item
from pipeline.video.outcomes import Clip, Decoded, RejectedWindow
from pipeline.video.windows import VideoFacts


def items_by_file(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Group the items of a unit that are ranges of one file. Every other item is a group of its own.

    Items that carry the file's content are only grouped if they follow each other, so that one file is held at a time.
    Ranges of files that are fetched come last, in the order in which their files first appear.
    """
    by_location: dict[str, list[Item]] = {}
    with_content: list[Item] = []
    for item in items:
        if with_content and item.content is not with_content[0].content:
            yield with_content
            with_content = []
        if item.range is None or item.fault is not None:
            yield [item]
        elif item.content is not None:
            with_content.append(item)
        else:
            by_location.setdefault(item.location, []).append(item)
    if with_content:
        yield with_content
    yield from by_location.values()


class WantedWindows:
    """The windows of an item that are to be retried. Without any, all windows of the item are wanted."""

    def __init__(self, windows: tuple[tuple[int, str], ...]) -> None:
        """``windows``: index and group of buckets of each."""
        self._all = not windows
        self._missing = list(windows)
        self._facts: VideoFacts | None = None
        self._cause = RejectedWindow(index=0, reject=Reject("decode", "changed", "the video no longer has this window"))

    def takes(self, decoded: Decoded) -> bool:
        """Return whether an outcome is that of a wanted window. Call it once with each outcome of the item, in order."""
        self._facts, outcome = decoded
        window = outcome.window if isinstance(outcome, Clip) else outcome
        if self._all:
            return True
        if isinstance(outcome, RejectedWindow):
            self._cause = outcome
        if (window.index, window.group) not in self._missing:
            return False
        self._missing.remove((window.index, window.group))
        return True

    def missing(self) -> Iterator[Decoded]:
        """A reject for every wanted window that had no outcome. A failure of the item is repeated for each."""
        for index, group in self._missing:
            yield self._facts, dataclasses.replace(self._cause, index=index, group=group)
