"""Samples as people see them: frames of the source above the same frames decoded from the latent."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.output.index import unit_of
from pipeline.output.plan import read_plan
from pipeline.recipe import Run
from pipeline.sources.discovery import find_sources
from pipeline.sources.item import Item, fetch, items
from pipeline.storage.store import Store
from pipeline.video.decoders import Clip, Decoders, Frames
from pipeline.video.windows import plan_windows
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
    """The frames uint8 [T,H,W,3] that samples were encoded from, decoded again from their sources."""
    with Sources(run, data) as sources:
        for row in rows:
            yield sources.frames(row)


class Sources:
    """What samples were encoded from: where it was, or where ``run.sources`` says that it is now."""

    def __init__(self, run: Run, data: LatentDataset) -> None:
        plan = read_plan(data.store)
        self._data = data
        self._units = {unit.name: unit for unit in plan.units}
        self._columns = plan.columns
        self._urls = {source.name: source.url for source in find_sources(run.sources)} if run.sources else {}
        self._decoders = Decoders(data.recipe, run)

    def frames(self, row: int) -> Frames:
        """The frames uint8 [T,H,W,3] of a sample. LatentmillError or Rejected if they can no longer be had."""
        found = self._data.columns.select(["shard", "ordinal", "window", "uri"]).slice(row, 1).to_pylist()[0]
        unit = self._units[unit_of(found["shard"])]
        for item in items(
            unit, self._urls.get(unit.source, unit.source), self._data.recipe, self._columns[unit.generation]
        ):
            if item.ordinal == found["ordinal"]:
                return self._clip(item, found).frames_THWC
        raise _changed(found)

    def _clip(self, item: Item, row: dict[str, Any]) -> Clip:
        plan = partial(plan_windows, recipe=self._data.recipe, geometry=self._data.card.geometry)
        with open(fetch(item, self._data.recipe), "rb", buffering=0) as file:
            for _, outcome in self._decoders.clips(file.fileno(), plan):
                if isinstance(outcome, Clip) and outcome.window.index == row["window"]:
                    return outcome
        raise _changed(row)

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()


def _changed(row: dict[str, Any]) -> ConfigError:
    return ConfigError(f"the source of this sample is no longer what it was: {row['uri']}")


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
