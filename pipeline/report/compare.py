"""Samples encoded again from their sources, beside what an output holds."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.output.verify import Comparison
from pipeline.recipe import Bucket, Run
from pipeline.report.round_trip import decode_back, psnr_db, source_frames
from stvae import load_codec

Array = npt.NDArray[np.float32]


def compare(run: Run, count: int, seed: int) -> Iterator[Comparison]:
    """Decode and encode ``count`` random samples again, with the micro-batch and the type that the recipe fixed.

    On the kind of device that made them they are equal but for the rounding of the stored type. ConfigError if
    ``run.codec`` is not the output's codec, or a source is not what it was.
    """
    data = LatentDataset(run.output)
    recipe = data.recipe
    codec = load_codec(run.codec, device="cuda" if run.gpus else "cpu", dtype=recipe.compute_dtype)
    if codec.card.sha256 != recipe.codec:
        raise ConfigError(f"the codec at '{run.codec}' is not the one that made {data.store.url}")
    if not run.gpus:
        torch.set_num_threads(run.cpus)
    rows = sorted(random.Random(seed).sample(range(len(data)), min(count, len(data))))
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        bucket = Bucket.parse(data.columns["bucket"][row].as_py())
        pixels = np.zeros((recipe.clips_per_call.get(bucket, 1), *frames.shape), dtype=np.uint8)
        pixels[0] = frames
        again = codec.encode(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3))[0, : codec.card.latent_channels]
        stored = data.read(np.array([row]))[0].astype(np.float32)
        yield Comparison(
            id=data.columns["id"][row].as_py(),
            key=data.columns["key"][row].as_py(),
            max_abs=float(np.abs(again.cpu().numpy() - stored).max()),
            cosine=_cosine(again.cpu().numpy(), stored),
            psnr_db=psnr_db(frames, decode_back(codec, data, row)),
        )


def _cosine(a: Array, b: Array) -> float:
    x, y = (values.astype(np.float64).ravel() for values in (a, b))
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y) or 1.0))
