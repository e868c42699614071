"""HDR to SDR: known light becomes known levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.video.outcomes import Clip
from pipeline.video.pictures.tone_map import HDR_PEAK_NITS, compressed, nits_to_pq, pq_to_nits, tone_mapped
from tests.support.clips_maker import make_clip, numbered_frame
from tests.video.conftest import Decode


def codes(signal: float | np.ndarray) -> np.ndarray:
    """A gray uint16 picture ``[1,W,3]`` of signals from 0 to 1."""
    row = np.rint(np.atleast_1d(signal) * 65535).astype(np.uint16)
    return np.repeat(row[None, :, None], 3, axis=2)


def test_the_pq_curve_has_the_values_of_the_standard() -> None:
    """BT.2408, table 1: 203 nits are 58 % of PQ's signal, 1000 nits are 75 %, 100 nits are 51 %."""
    assert np.round(nits_to_pq(np.array([100.0, 203.0, 1000.0])), 2).tolist() == [0.51, 0.58, 0.75]
    assert np.allclose(pq_to_nits(nits_to_pq(np.array([0.1, 5.0, 203.0, 4000.0]))), [0.1, 5.0, 203.0, 4000.0])


def test_dark_parts_stay_and_the_peak_becomes_white() -> None:
    assert np.allclose(compressed(np.array([0.1, 1.0, 5.0])), [0.1, 1.0, 5.0])
    assert compressed(np.array([HDR_PEAK_NITS]))[0] == pytest.approx(203)
    assert tone_mapped(codes(float(nits_to_pq(np.array(1000.0)))), "pq").tolist() == [[[255, 255, 255]]]
    assert tone_mapped(codes(1.0), "hlg").tolist() == [[[255, 255, 255]]]
    assert tone_mapped(codes(0.0), "pq").max() == tone_mapped(codes(0.0), "hlg").max() == 0


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_gray_stays_gray_and_brighter_never_becomes_darker(transfer: str) -> None:
    levels = tone_mapped(codes(np.linspace(0, 1, 500)), transfer)[0].astype(int)
    assert np.ptp(levels, axis=1).max() <= 1
    assert (np.diff(levels[:, 0]) >= 0).all()


def test_pq_and_hlg_agree_about_reference_white() -> None:
    """BT.2408: 203 nits are 58 % of PQ's signal and 75 % of HLG's."""
    pq, hlg = tone_mapped(codes(0.5807), "pq"), tone_mapped(codes(0.75), "hlg")
    assert np.abs(pq.astype(int) - hlg).max() <= 2 and 200 < pq.max() < 250


def test_an_hdr_video_is_kept_or_tone_mapped(read: Decode, tmp_path: Path) -> None:
    options = {"color_trc": "smpte2084", "colorspace": "bt2020nc", "color_primaries": "bt2020"}
    frames = [numbered_frame(number, 64, 112) // 2 for number in range(18)]
    path = make_clip(tmp_path / "pq.mp4", frames=frames, options=options, pix_fmt="yuv420p10le")
    (facts, (kept, _)), (_, (mapped, _)) = read(path), read(path, policy="deinterlace")
    assert facts is not None and facts.hdr == "pq" and isinstance(kept, Clip) and isinstance(mapped, Clip)
    expected = tone_mapped(kept.frames_THWC[0].astype(np.uint16) * 257, "pq")
    assert np.abs(mapped.frames_THWC[0].astype(int) - expected).mean() < 3
    assert np.abs(mapped.frames_THWC[0].astype(int) - kept.frames_THWC[0]).mean() > 5
