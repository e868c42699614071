"""Items that share a file, and the windows of an item that are retried."""

from __future__ import annotations

from pipeline.encode.items_of_file import WantedWindows, items_by_file
from pipeline.errors import Reject
from pipeline.sources.item import Item
from pipeline.video.outcomes import RejectedWindow

GONE = Reject("fetch", "not_found", "there is no such file")


def test_a_failure_of_the_item_is_the_reject_of_every_wanted_window() -> None:
    for windows in [(0, 1, 4), (1, 4)]:
        wanted = WantedWindows(tuple((index, "") for index in windows))
        is_taken = wanted.takes((None, RejectedWindow(index=0, reject=GONE)))
        assert is_taken == (0 in windows)
        rejects = [outcome for _, outcome in wanted.missing()]
        assert rejects == [RejectedWindow(index=index, reject=GONE) for index in (1, 4)]


def test_a_failure_of_the_item_is_the_reject_of_every_wanted_window_of_every_group() -> None:
    pairs = ((0, "large"), (0, "small"), (2, "small"))
    wanted = WantedWindows(pairs)
    assert wanted.takes((None, RejectedWindow(index=0, group="small", reject=GONE)))
    assert not wanted.takes((None, RejectedWindow(index=0, reject=GONE))), "it stands for the whole item"
    rejects = [outcome for _, outcome in wanted.missing()]
    expected = [RejectedWindow(index=index, group=group, reject=GONE) for index, group in (pairs[0], pairs[2])]
    assert rejects == expected


def test_a_window_that_the_video_no_longer_has_is_a_reject() -> None:
    ((_, outcome),) = WantedWindows(((3, ""),)).missing()
    assert isinstance(outcome, RejectedWindow)
    assert (outcome.index, outcome.reject.name) == (3, "decode/changed")


def test_ranges_of_one_file_are_a_group() -> None:
    def item(ordinal: int, location: str, **fields: object) -> Item:
        return Item(ordinal=ordinal, key=str(ordinal), uri="", location=location, **fields)  # type: ignore[arg-type]

    content = b"video"
    given = [
        item(0, "a", range=(0.0, 1.0)),
        item(1, "b"),
        item(2, "", range=(0.0, 1.0), content=content),
        item(3, "", range=(1.0, 2.0), content=content),
        item(4, "a", range=(1.0, 2.0)),
        item(5, "a", range=(2.0, 3.0), fault=GONE),
    ]
    assert [[found.ordinal for found in group] for group in items_by_file(given)] == [[1], [2, 3], [5], [0, 4]]
