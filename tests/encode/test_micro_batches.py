"""Micro-batches on a device whose memory runs out at other places than in the VAE's own allocations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.encode.micro_batches import DecodedClip, EncodedClips, MicroBatchEncoder
from pipeline.encode.utilization import Utilization
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from stvae import load_vae
from stvae.vae import VAE
from tests.support import tiny_vaes
from tests.support.plain_clips import clip_of, plain_facts

BUCKET = Bucket(5, 16, 24)


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[MicroBatchEncoder]:
    vae = load_vae(tiny_vaes.save("AutoencoderKLWan", tmp_path), only="encoder")
    made = MicroBatchEncoder(vae, Recipe(vae="x", buckets=(BUCKET,), micro_batch=(2,)))
    yield made
    made.queue.close()


def encode(encoder: MicroBatchEncoder) -> EncodedClips:
    """Encode two clips of random pixels."""
    size = (BUCKET.num_frames, BUCKET.height, BUCKET.width)
    clips = []
    for number in range(2):
        frames = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        item = Item(ordinal=number, key=str(number), uri="")
        clips.append(DecodedClip(item, plain_facts(*size), clip_of(BUCKET, frames), str(number)))
    with Utilization().unit() as activities:
        return encoder.submit(clips, activities).result()


def test_pixels_that_do_not_fit_beside_the_vae_are_uploaded_when_it_is_their_turn(
    encoder: MicroBatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode(encoder)
    failures = 0

    def full(self: VAE, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise torch.OutOfMemoryError("another micro-batch has it")
        return pixels

    monkeypatch.setattr(VAE, "upload", full)
    for id, encoded in encode(encoder).items():
        assert encoded is not None and encoded.encode_path == "whole"
        assert np.array_equal(encoded.members["latent"], expected[id].members["latent"])  # type: ignore[union-attr]
    assert failures == 2


@pytest.mark.parametrize("clips_that_fit", [1, 0])
def test_cudnn_without_an_algorithm_gets_smaller_calls_but_no_reject(
    clips_that_fit: int, encoder: MicroBatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = VAE.encode

    def limited(self: VAE, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(pixels) > clips_that_fit:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        result: torch.Tensor = plain(self, pixels, **options)
        return result

    monkeypatch.setattr(VAE, "encode", limited)
    if clips_that_fit:
        assert {encoded.encode_path for encoded in encode(encoder).values() if encoded} == {"single"}
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):  # it is not memory: no clip is to blame
            encode(encoder)
