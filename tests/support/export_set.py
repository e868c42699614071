"""A mixed set for exports, and what the loader reads of it: images and videos, texts in Unicode, several or no captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.encode_text import main as encode_text
from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.loader.text.reading import EmbeddedArray, read_texts
from tests.support.captioned_set import BUCKET, VIDEO_BUCKET, Captions, add_unit, finish, recipe_of
from tests.support.golden import TINY

LAYER = "t5"


def mixed_samples(image: Bucket = BUCKET, video: Bucket = VIDEO_BUCKET) -> list[Captions]:
    """One image and five clips. One clip has two captions, and one has none."""
    return [
        Captions(caption="a dog", bucket=image),
        Captions(caption="ein Hund läuft über die Wiese 🐕, sagt man", bucket=video),
        Captions(caption=["first of two", "second of two"], bucket=video),
        Captions(caption=None, bucket=video),
        Captions(caption='a text\nin two lines, with "quotes"', bucket=video),
        Captions(caption="a dog", bucket=video),
    ]


SAMPLES = mixed_samples()


def write_mixed_set(
    folder: Path, samples: Sequence[Captions] = SAMPLES, encoder: Sequence[str] = ("demo",), vae: Path = TINY
) -> Path:
    """Write an output of two units with these samples, and a text layer. ``encoder``: what follows ``--encoder``."""
    recipe = recipe_of(vae, list(dict.fromkeys(each.bucket for each in samples)))
    add_unit(folder, samples[:3], recipe, vae)
    add_unit(folder, samples[3:], recipe, vae)
    finish(folder, recipe)
    flags = ["--layer", LAYER, "--captions", "caption,captions", "--local", "--cpus", "1"]
    assert encode_text([str(folder), "--encoder", *encoder, *flags]) == 0
    return folder


class Expected:
    """The latents and texts of an output as the loader reads them, by id."""

    def __init__(self, output: Path, where: str | None = None) -> None:
        self.data = LatentDataset(output, where=where, text=LAYER)
        layer = self.data.text
        assert layer is not None
        batches = list(self.data.batches(1, rank=0, world_size=1, copy=True))
        self.latents = {batch["id"][0]: batch["latents"][0] for batch in batches}
        self.captions = {batch["id"][0]: batch["caption"][0] for batch in batches}
        self.fps = {batch["id"][0]: float(batch["fps"][0]) for batch in batches}
        self.ids = [id for id, caption in self.captions.items() if caption]
        rows = self.data.columns
        self.rows = {row["id"]: row for row in rows.to_pylist()}
        self.arrays: dict[str, dict[str, EmbeddedArray]] = {}
        for number, id in enumerate(rows["id"].to_pylist()):
            forms = layer.captions["caption"]
            form = forms.likeliest(int(self.data.samples.rows[number]), 0)
            if form is not None:
                self.arrays[id] = read_texts(self.data.store, layer, [int(forms.rows[form])])[0]
        self.text = {id: next(iter(arrays.values())) for id, arrays in self.arrays.items()}
        mean = self.data.read(self.data.samples.rows * 0 + range(len(self.data)))
        moments = self.data.read(self.data.samples.rows * 0 + range(len(self.data)), latent="sample")
        ids = rows["id"].to_pylist()
        self.raw = {id: torch.tensor(array).float() for id, array in zip(ids, mean, strict=True)}
        self.moments = {id: torch.tensor(array).float() for id, array in zip(ids, moments, strict=True)}
