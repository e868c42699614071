"""Pictures of samples: frames of the source above the same frames decoded from the latent."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageDraw

from pipeline.errors import ConfigError, LatentmillError, Rejected
from pipeline.loader import LatentDataset
from pipeline.output.schema import bucket_names
from pipeline.recipe import Run
from pipeline.report.pictures import Picture, write_pictures
from pipeline.report.round_trip import (
    SourceFrameReader,
    decode_back,
    encode_again,
    float16_psnr_db,
    psnr_db,
    require_sources,
    source_frames,
)
from pipeline.storage.checkpoint import local_checkpoint
from pipeline.storage.parquet import value_counts
from pipeline.storage.store import Store
from pipeline.video.outcomes import Frames
from stvae import load_vae
from stvae.vae import VAE

NUM_FRAMES = 6
"""Number of frames of a clip in its picture."""
LABEL_PIXELS, GAP_PIXELS = 22, 4
"""Height of a label, and the gap below a strip, in the picture of ``preview``."""
MAX_BUCKETS = 12
"""Number of buckets in the gallery, those with the most samples."""
MAX_WIDTH = 1440
WEBP_QUALITY = 80
DRAWS_PER_PICTURE = 8
"""Number of samples to draw for each picture, so that pictures of different videos can be chosen from them."""


def make_gallery(run: Run, per_bucket: int, say: Callable[[str], None]) -> None:
    """Decode ``per_bucket`` random samples of the largest buckets and write their pictures to the output.

    A sample whose source can no longer be read gets its error in place of a picture. Raises ConfigError if ``run.vae`` is
    not the output's VAE.
    """
    data = LatentDataset(run.output)
    require_sources(data)
    device = "cuda" if run.encoder_gpus else "cpu"
    vae = load_vae(
        local_checkpoint(run.vae),
        device=device,
        dtype=data.recipe.compute_dtype,
        only=None if data.recipe.dtype == "int8" else "decoder",  # of int8, what float16 would show is computed too
        unlisted=bool(data.card.assumed),
    )
    if vae.card.sha256 != data.recipe.vae:
        raise ConfigError(f"the VAE at '{run.vae}' is not the one that made {data.store.url}")
    if not run.encoder_gpus:
        torch.set_num_threads(run.encoder_cpus)
    pictures = []
    with SourceFrameReader(run, data) as reader:
        for row in _choose_rows(data, per_bucket):
            pictures.append(_make_picture(reader, vae, data, row))
            say(f"{pictures[-1].bucket_name}  {pictures[-1].key[:60]}  {pictures[-1].error or 'decoded'}")
    write_pictures(data.store, pictures)


def _choose_rows(data: LatentDataset, per_bucket: int) -> list[int]:
    """Draw rows of each bucket at random with a fixed seed; of different videos where possible."""
    column = bucket_names(data.columns)
    counts = value_counts(column)
    rows: list[int] = []
    for bucket in sorted(counts, key=lambda name: (-counts[name], name))[:MAX_BUCKETS]:
        of_bucket = np.flatnonzero(pc.equal(column, bucket).to_numpy()).tolist()
        drawn = random.Random(0).sample(of_bucket, min(len(of_bucket), DRAWS_PER_PICTURE * per_bucket))
        videos = data.columns.select(["source", "ordinal"]).take(drawn).to_pylist()
        by_video = {tuple(video.values()): row for row, video in zip(reversed(drawn), reversed(videos), strict=True)}
        different = list(by_video.values())
        rows += (different + [row for row in drawn if row not in different])[:per_bucket]
    return rows


def _make_picture(reader: SourceFrameReader, vae: VAE, data: LatentDataset, row: int) -> Picture:
    columns = ["id", "bucket", "group", "key", "source", "caption", "start_s", "end_s", "num_frames"]
    facts: dict[str, Any] = data.columns.select(columns).slice(row, 1).to_pylist()[0]
    try:
        frames = reader.read(row)
    except (LatentmillError, Rejected) as error:
        return Picture(**facts, error=str(error))
    decoded = decode_back(vae, data, row)
    is_int8 = data.recipe.dtype == "int8"
    picture = Image.fromarray(side_by_side(frames, decoded))
    picture.thumbnail((MAX_WIDTH, MAX_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=WEBP_QUALITY)
    return Picture(
        **facts,
        psnr_db=psnr_db(frames, decoded),
        float16_psnr_db=float16_psnr_db(vae, encode_again(vae, data, row, frames), frames) if is_int8 else None,
        webp=base64.b64encode(buffer.getvalue()).decode(),
        width=picture.width,
        height=picture.height,
    )


def preview(run: Run, rows: Sequence[int], path: str) -> str:
    """Decode samples, given by their rows in the index, and write one picture of all of them as PNG.

    ``path`` is relative to the output. Returns the picture's URL.
    """
    data = LatentDataset(run.output)
    vae = load_vae(local_checkpoint(run.vae), only="decoder", unlisted=bool(data.card.assumed))
    strips, buckets = [], bucket_names(data.columns)
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        decoded = decode_back(vae, data, row)
        label = f"{data.columns['key'][row]}   {buckets[row]}   PSNR {psnr_db(frames, decoded):.1f} dB"
        strips.append(_strip(frames, decoded, label))
    buffer = io.BytesIO()
    _stack(strips).save(buffer, format="PNG")
    store = Store(run.output)
    store.put(path, buffer.getvalue())
    return f"{store.url}/{path}"


def side_by_side(source: Frames, decoded: Frames) -> Frames:
    """Put n frames of a clip in a row above the same frames decoded: uint8 [2 * H, n * W, 3]."""
    frame_numbers = np.linspace(0, len(source) - 1, min(NUM_FRAMES, len(source))).round().astype(int)
    rows = [np.concatenate(list(frames[frame_numbers]), axis=1) for frames in (source, decoded)]
    return np.concatenate(rows, axis=0)


def _strip(source: Frames, decoded: Frames, label: str) -> Image.Image:
    picture = Image.fromarray(side_by_side(source, decoded))
    strip = Image.new("RGB", (picture.width, picture.height + LABEL_PIXELS), "white")
    strip.paste(picture, (0, LABEL_PIXELS))
    ImageDraw.Draw(strip).text((4, 5), f"{label}   (source above, decoded below)", fill="black")
    return strip


def _stack(strips: list[Image.Image]) -> Image.Image:
    height = sum(strip.height + GAP_PIXELS for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + GAP_PIXELS
    return sheet
