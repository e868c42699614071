"""Turns HDR pictures (PQ or HLG, BT.2020) into SDR pictures (BT.709). Runs in decoding children only.

Sources: ITU-R BT.2100-2 for the transfer functions, BT.2408 for reference white, BT.2390-10 section 5.4.1 for the curve,
BT.2087 for the primaries.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

HDR_PEAK_NITS, SDR_PEAK_NITS = 1000.0, 203.0
"""Brightness of HDR content at most (brighter parts are clipped), and of white in SDR."""
HLG_GAMMA = 1.2
"""Exponent of HLG's system curve for a display of 1000 nits."""
SDR_GAMMA = 2.4
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
"""Linear BT.2020 RGB to linear BT.709 RGB."""
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
CODES = 1 << 16
FACTORS_TO_PEAK = 16384
"""Entries of the table of factors from black to HDR's peak. The rest are for brighter parts."""
CLIPPED = 15.9
"""Largest multiple of HDR's peak that is told apart: PQ ends at 10,000 nits."""

Floats = npt.NDArray[np.floating[Any]]


def tone_mapped(picture_HWC: npt.NDArray[np.uint16], transfer: str) -> npt.NDArray[np.uint8]:
    """An SDR picture, uint8 RGB ``[H,W,3]``, of an HDR picture, uint16 RGB ``[H,W,3]`` as coded; ``transfer`` is pq or hlg.

    Shapes: both ``[H,W,3]``. Invariant: gray stays gray, and a brighter pixel never becomes darker.
    Example: PQ code 0.58 of full scale is 203 nits, reference white, and becomes about 0.9 of SDR's full scale.
    """
    light_HWC = _linear_codes(transfer)[picture_HWC]
    if transfer == "hlg":
        luma_HW1 = (light_HWC @ BT2020_LUMA)[..., None]
        light_HWC = HDR_PEAK_NITS * light_HWC * np.power(luma_HW1, HLG_GAMMA - 1, where=luma_HW1 > 0, out=luma_HW1)
    peak_HW = np.minimum(light_HWC.max(axis=-1) / HDR_PEAK_NITS, CLIPPED)
    light_HWC *= _factors()[(np.sqrt(peak_HW) * FACTORS_TO_PEAK).astype(np.uint16)][..., None]
    sdr_HWC = np.clip(light_HWC @ TO_BT709.T, 0, 1)
    levels_HWC: npt.NDArray[np.uint8] = _gamma_codes()[np.rint(sdr_HWC * (CODES - 1)).astype(np.uint16)]
    return levels_HWC


def pq_to_nits(signal: Floats) -> Floats:
    """The PQ curve: nits of signals from 0 to 1."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(signal, 1 / m2)
    return 10000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def nits_to_pq(nits: Floats) -> Floats:
    """The inverse of ``pq_to_nits``."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(nits / 10000, m1)
    return np.power((c1 + c2 * power) / (1 + c3 * power), m2)


def compressed(nits: Floats) -> Floats:
    """BT.2390's curve from HDR's peak to SDR's: dark parts stay, bright parts are compressed. Nits in and out."""
    peak = nits_to_pq(np.array(HDR_PEAK_NITS))
    signal = np.minimum(nits_to_pq(nits) / peak, 1)
    limit = float(nits_to_pq(np.array(SDR_PEAK_NITS)) / peak)
    knee = 1.5 * limit - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * limit
    return pq_to_nits(np.where(signal < knee, signal, spline) * peak)


@cache
def _linear_codes(transfer: str) -> npt.NDArray[np.float32]:
    """Linear light of every 16-bit code: nits for PQ, scene light from 0 to 1 for HLG."""
    signal = np.arange(CODES) / (CODES - 1)
    if transfer == "pq":
        return pq_to_nits(signal).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@cache
def _factors() -> npt.NDArray[np.float32]:
    """Factors that turn nits into SDR from 0 to 1, indexed by the square root of the largest channel over HDR's peak."""
    nits = HDR_PEAK_NITS * (np.maximum(np.arange(CODES), 1) / FACTORS_TO_PEAK) ** 2
    factors: npt.NDArray[np.float32] = (compressed(nits) / nits / SDR_PEAK_NITS).astype(np.float32)
    return factors


@cache
def _gamma_codes() -> npt.NDArray[np.uint8]:
    """The 8-bit code of every 16-bit amount of linear light."""
    levels: npt.NDArray[np.uint8] = np.rint(255 * (np.arange(CODES) / (CODES - 1)) ** (1 / SDR_GAMMA)).astype(np.uint8)
    return levels
