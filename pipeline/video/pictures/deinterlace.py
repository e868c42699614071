"""Turns interlaced frames into progressive ones. Runs in decoding children only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import av.error
import av.filter

FILTER, OPTIONS = "bwdif", "mode=send_frame:deint=interlaced"
"""One frame out for one frame in; frames that are not marked as interlaced stay as they are."""


def deinterlaced(frames: Iterator[tuple[int, Any]], time_base: Any) -> Iterator[tuple[int, Any]]:
    """Yield (pts, progressive frame) for every (pts, frame). It is one frame behind, since the filter looks ahead."""
    graph: Any = None
    waiting: deque[int] = deque()
    for pts, frame in frames:
        if graph is None:
            graph = _graph(frame, time_base)
        waiting.append(pts)
        graph.push(frame)
        yield from _filtered(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _filtered(graph, waiting)


def _filtered(graph: Any, waiting: deque[int]) -> Iterator[tuple[int, Any]]:
    """The frames that the filter has finished, each with the oldest time that waits for one."""
    while waiting:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield waiting.popleft(), frame


def _graph(frame: Any, time_base: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    filter_ = graph.add(FILTER, OPTIONS)
    source.link_to(filter_)
    filter_.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
