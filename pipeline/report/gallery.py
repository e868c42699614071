"""Pictures for the report: a few samples of every bucket, frames of the source above the same frames decoded back.

They are kept in the output, so that reports that are made without the VAE show them too.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageDraw

from pipeline.errors import ConfigError, LatentmillError, Rejected
from pipeline.loader import LatentDataset
from pipeline.recipe import Run
from pipeline.report.page import GALLERY, Picture
from pipeline.report.round_trip import SourceFrames, decode_back, psnr_db, source_frames
from pipeline.storage.parquet import value_counts
from pipeline.storage.store import Store
from pipeline.video.outcomes import Frames
from stvae import load_vae
from stvae.vae import VAE

FRAMES_SHOWN = 6

LABEL_PIXELS = 22

GAP_PIXELS = 4


MOST_BUCKETS = 12
MOST_WIDTH = 1440
QUALITY = 80


def make_gallery(run: Run, per_bucket: int, say: Callable[[str], None]) -> None:
    """Decode random samples of the fullest buckets back and keep their pictures in the output.

    ConfigError if ``run.VAE`` is not the output's VAE. A sample whose source cannot be opened any more says why.
    """
    data = LatentDataset(run.output)
    device = "cuda" if run.gpus else "cpu"
    vae = load_vae(run.vae, device=device, dtype=data.recipe.compute_dtype, only="decoder")
    if vae.card.sha256 != data.recipe.vae:
        raise ConfigError(f"the VAE at '{run.vae}' is not the one that made {data.store.url}")
    if not run.gpus:
        torch.set_num_threads(run.cpus)
    pictures = []
    with SourceFrames(run, data) as sources:
        for row in _chosen(data, per_bucket):
            pictures.append(_picture(sources, vae, data, row))
            say(f"{pictures[-1].bucket}  {pictures[-1].key[:60]}  {pictures[-1].error or 'decoded back'}")
    data.store.put(GALLERY, json.dumps([dataclasses.asdict(picture) for picture in pictures]).encode())


def _chosen(data: LatentDataset, per_bucket: int) -> list[int]:
    """Rows at random, always the same; as far as possible of different videos."""
    column = data.columns["bucket"]
    counts = value_counts(column)
    rows: list[int] = []
    for bucket in sorted(counts, key=lambda name: (-counts[name], name))[:MOST_BUCKETS]:
        found = np.flatnonzero(pc.equal(column, bucket).to_numpy())
        drawn = random.Random(0).sample(found.tolist(), min(len(found), 8 * per_bucket))
        videos = data.columns.select(["source", "ordinal"]).take(drawn).to_pylist()
        first = {tuple(video.values()): row for row, video in zip(reversed(drawn), reversed(videos), strict=True)}
        different = list(first.values())
        rows += (different + [row for row in drawn if row not in different])[:per_bucket]
    return rows


def _picture(sources: SourceFrames, vae: VAE, data: LatentDataset, row: int) -> Picture:
    columns = ["id", "bucket", "key", "source", "caption", "start_s", "end_s", "num_frames"]
    facts: dict[str, Any] = data.columns.select(columns).slice(row, 1).to_pylist()[0]
    try:
        frames = sources.frames(row)
    except (LatentmillError, Rejected) as error:
        return Picture(**facts, error=str(error))
    decoded = decode_back(vae, data, row)
    picture = Image.fromarray(side_by_side(frames, decoded))
    picture.thumbnail((MOST_WIDTH, MOST_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=QUALITY)
    return Picture(
        **facts,
        psnr_db=psnr_db(frames, decoded),
        webp=base64.b64encode(buffer.getvalue()).decode(),
        width=picture.width,
        height=picture.height,
    )


def preview(run: Run, rows: Sequence[int], path: str) -> str:
    """Decode samples (by their row in the index) back and write one picture of them; its URL.

    ``path`` is relative to the output.
    """
    data = LatentDataset(run.output)
    vae = load_vae(run.vae, only="decoder")
    strips = []
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        decoded = decode_back(vae, data, row)
        label = f"{data.columns['key'][row]}   {data.columns['bucket'][row]}   PSNR {psnr_db(frames, decoded):.1f} dB"
        strips.append(_strip(frames, decoded, label))
    buffer = io.BytesIO()
    _stack(strips).save(buffer, format="PNG")
    store = Store(run.output)
    store.put(path, buffer.getvalue())
    return f"{store.url}/{path}"


def side_by_side(source: Frames, decoded: Frames) -> Frames:
    """A few frames of a clip in a row above the same frames decoded: uint8 [2H, n W, 3]."""
    picked = np.linspace(0, len(source) - 1, min(FRAMES_SHOWN, len(source))).round().astype(int)
    rows = [np.concatenate(list(frames[picked]), axis=1) for frames in (source, decoded)]
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
