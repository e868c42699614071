"""Reads frames with decord. Lost frames are errors, and decord's frame table is checked against the packets.

Runs in decoding children only, which never import torch: with CUDA builds of torch, decord crashes depending on the order
of imports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import decord
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.confinement.child import in_memory, is_opened_by_path
from pipeline.video.containers import MAGIC
from pipeline.video.windows import VideoFacts

decord.logging.set_level(decord.logging.QUIET)

FRAMES_PER_CALL = 16
PLAIN_STARTS = (
    *((offset, magic) for offset, magic, _ in MAGIC),
    *((4, atom) for atom in (b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"FLV\x01"),
    (0, b"\x89PNG"),
    (0, b"\xff\xd8\xff"),
)
"""(offset, bytes) at the start of files that no demuxer takes for a playlist."""


def frames(file: BinaryIO, facts: VideoFacts, wanted: list[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]] | None:
    """(pts, upright RGB frame ``[H,W,3]``) for each of the ``wanted`` presentation times, which must ascend.

    None if decord's frame table differs from ``facts``, or if decord might open other files. The caller must not pass a
    video with a ``decord_refusal``, since decord's table would not show what it gets wrong there.
    """
    file.seek(0)
    start = file.read(16)
    if not any(start[offset:].startswith(magic) for offset, magic in PLAIN_STARTS):
        return None  # decord's own FFmpeg takes any format, so it would open the files that a playlist names
    # a path, because decord's reader of byte streams has no bounds check; fault_tol=1, because by default decord
    # replaces lost frames by copies of others
    opened = os.dup(file.fileno()) if is_opened_by_path(file.fileno()) else in_memory(file.fileno())
    try:
        reader = decord.VideoReader(f"/proc/self/fd/{opened}", num_threads=1, fault_tol=1)
        starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    except (decord.DECORDError, RuntimeError, IndexError):
        return None
    finally:
        os.close(opened)
    expected_s = np.array(facts.pts, dtype=np.float64) * float(facts.time_base)
    if len(starts_s) != len(expected_s) or np.abs((starts_s - starts_s[0]) - (expected_s - expected_s[0])).max() > 1e-3:
        return None
    return _read(reader, facts, wanted)


def _read(
    reader: decord.VideoReader, facts: VideoFacts, wanted: list[int]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    position = {pts: i for i, pts in enumerate(facts.pts)}
    for start in range(0, len(wanted), FRAMES_PER_CALL):
        part = wanted[start : start + FRAMES_PER_CALL]
        try:
            batch = reader.get_batch([position[pts] for pts in part]).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise Rejected("decode", "invalid_data", "decord could not decode a frame") from error
        yield from zip(part, batch, strict=True)
