"""Frames through decord, made safe: by path, with fault tolerance off, and checked against the packet index.

Runs in decoding children that never import torch (decord crashes beside CUDA builds of it, by import order).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import decord
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.pyav_reader import MAGIC
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
"""Where and how files begin that nothing takes for a playlist."""


def frames(file: BinaryIO, facts: VideoFacts, wanted: list[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]] | None:
    """(pts, upright RGB frame) of the wanted presentation times, ascending; None where decord's table disagrees
    or decord might open other files.

    The caller has already refused what decord gets wrong without its table showing it (``VideoFacts.decord_refusal``).
    """
    file.seek(0)
    start = file.read(16)
    if not any(start[offset:].startswith(magic) for offset, magic in PLAIN_STARTS):
        return None  # decord's own FFmpeg has no list of formats: it would open what a playlist names
    # a path, because decord's reader of byte streams has no bounds check; fault_tol=1, because by default lost
    # frames are replaced by copies of others
    try:
        reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", num_threads=1, fault_tol=1)
        starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    except (decord.DECORDError, RuntimeError, IndexError):
        return None
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
