"""A mixed set for exports, and what the loader reads of it: images and videos, texts in Unicode, several or no captions."""

from __future__ import annotations

from pathlib import Path

import torch

from jobs.encode_text import main as encode_text
from pipeline.loader import LatentDataset
from pipeline.loader.text.reading import EmbeddedArray, read_texts
from tests.support.captioned_set import VIDEO_BUCKET, Captions, add_unit, finish

SAMPLES = [
    Captions(caption="a dog"),
    Captions(caption="ein Hund läuft über die Wiese 🐕, sagt man", bucket=VIDEO_BUCKET),
    Captions(caption=["first of two", "second of two"], bucket=VIDEO_BUCKET),
    Captions(caption=None, bucket=VIDEO_BUCKET),
    Captions(caption='a text\nin two lines, with "quotes"', bucket=VIDEO_BUCKET),
    Captions(caption="a dog", bucket=VIDEO_BUCKET),
]


def write_mixed_set(folder: Path) -> Path:
    """Write an output of two units with ``SAMPLES``, and the text layer ``t5``."""
    add_unit(folder, SAMPLES[:3])
    add_unit(folder, SAMPLES[3:])
    finish(folder)
    flags = ["--encoder", "demo", "--layer", "t5", "--captions", "caption,captions", "--local", "--cpus", "1"]
    assert encode_text([str(folder), *flags]) == 0
    return folder


class Expected:
    """The latents and texts of an output as the loader reads them, by id."""

    def __init__(self, output: Path, where: str | None = None) -> None:
        self.data = LatentDataset(output, where=where, text="t5")
        layer = self.data.text
        assert layer is not None
        batches = list(self.data.batches(1, rank=0, world_size=1, copy=True))
        self.latents = {batch["id"][0]: batch["latents"][0] for batch in batches}
        self.captions = {batch["id"][0]: batch["caption"][0] for batch in batches}
        self.fps = {batch["id"][0]: float(batch["fps"][0]) for batch in batches}
        self.ids = [id for id, caption in self.captions.items() if caption]
        rows = self.data.columns
        self.text: dict[str, EmbeddedArray] = {}
        for number, id in enumerate(rows["id"].to_pylist()):
            forms = layer.captions["caption"]
            form = forms.likeliest(int(self.data.samples.rows[number]), 0)
            if form is not None:
                self.text[id] = read_texts(self.data.store, layer, [int(forms.rows[form])])[0]["t5"]
        mean = self.data.read(self.data.samples.rows * 0 + range(len(self.data)))
        moments = self.data.read(self.data.samples.rows * 0 + range(len(self.data)), latent="sample")
        ids = rows["id"].to_pylist()
        self.raw = {id: torch.from_numpy(array).float() for id, array in zip(ids, mean, strict=True)}
        self.moments = {id: torch.from_numpy(array).float() for id, array in zip(ids, moments, strict=True)}
