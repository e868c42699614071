"""Samples as people see them: frames of the source above the same frames decoded from the latent."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageDraw

from pipeline.clips import plan_windows
from pipeline.decode import Clip, Decoders, Frames
from pipeline.errors import ConfigError
from pipeline.items import fetch, items
from pipeline.loader import LatentDataset
from pipeline.plan import Unit, read_plan
from pipeline.recipe import Run
from pipeline.sources import find_sources
from pipeline.store import Store
from stvae import load_codec
from stvae.codec import Codec

FRAMES_SHOWN = 6
LABEL_PIXELS = 22
GAP_PIXELS = 4


def preview(run: Run, rows: Sequence[int], path: str) -> str:
    """Decode samples (by their row in the index) back and write one picture of them; its URL.

    ``path`` is relative to the output.
    """
    data = LatentDataset(run.output)
    codec = load_codec(run.codec, half="decoder")
    strips = []
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        decoded = decode_back(codec, data, row)
        label = f"{data.columns['key'][row]}   {data.columns['bucket'][row]}   PSNR {psnr_db(frames, decoded):.1f} dB"
        strips.append(_strip(frames, decoded, label))
    buffer = io.BytesIO()
    _stack(strips).save(buffer, format="PNG")
    store = Store(run.output)
    store.put(path, buffer.getvalue())
    return f"{store.url}/{path}"


def source_frames(run: Run, data: LatentDataset, rows: Sequence[int]) -> Iterator[Frames]:
    """The frames uint8 [T,H,W,3] that samples were encoded from, decoded again from their sources.

    The sources are where they were, or where ``run.sources`` says that they are now.
    """
    plan = read_plan(data.store)
    units = {unit.name: unit for unit in plan.units}
    urls = {source.name: source.url for source in find_sources(run.sources)} if run.sources else {}
    decoders = Decoders(data.recipe, run)
    try:
        for row in data.columns.select(["shard", "ordinal", "window", "uri"]).take(rows).to_pylist():
            unit = units[row["shard"].removeprefix("shards/").rpartition("-")[0]]
            url = urls.get(unit.source, unit.source)
            yield _find_clip(unit, url, row, data, decoders, plan.columns[unit.generation]).frames_THWC
    finally:
        decoders.close()


def decode_back(codec: Codec, data: LatentDataset, row: int) -> Frames:
    """A sample's frames uint8 [T,H,W,3] as the codec restores them from the stored mean."""
    latent = torch.from_numpy(data.read(np.array([row]))[0].astype(np.float32))
    pixels = codec.decode(latent[None], data.columns["num_frames"][row].as_py())
    frames: Frames = pixels[0].permute(1, 2, 3, 0).cpu().numpy()
    return frames


def psnr_db(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio of 8-bit frames in decibels."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _find_clip(
    unit: Unit, url: str, row: dict[str, Any], data: LatentDataset, decoders: Decoders, columns: pa.Schema
) -> Clip:
    for item in items(unit, url, data.recipe, columns):
        if item.ordinal == row["ordinal"]:
            with open(fetch(item, data.recipe), "rb", buffering=0) as file:
                plan = lambda facts: plan_windows(facts, data.recipe, data.card.geometry)  # noqa: E731
                for _, outcome in decoders.clips(file.fileno(), plan):
                    if isinstance(outcome, Clip) and outcome.window.index == row["window"]:
                        return outcome
    raise ConfigError(f"the source of this sample is no longer what it was: {row['uri']}")


def _strip(source: Frames, decoded: Frames, label: str) -> Image.Image:
    picked = np.linspace(0, len(source) - 1, min(FRAMES_SHOWN, len(source))).round().astype(int)
    rows = [np.concatenate(list(frames[picked]), axis=1) for frames in (source, decoded)]
    picture: npt.NDArray[np.uint8] = np.concatenate(rows, axis=0)
    strip = Image.new("RGB", (picture.shape[1], picture.shape[0] + LABEL_PIXELS), "white")
    strip.paste(Image.fromarray(picture), (0, LABEL_PIXELS))
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
