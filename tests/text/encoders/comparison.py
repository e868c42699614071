"""What tests of families share: captions, opening an encoder, and padding as the loader does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.output.layers.text_card import TextArray
from pipeline.text.encoder import EmbeddedArray, EmbeddedText, EncoderOptions
from pipeline.text.encoders.encoder import FamilyEncoder
from pipeline.text.encoders.opening import load_text_encoder

LONG = "a cat walks over the grass and a dog sleeps " * 60
CAPTIONS = ["A cat  walks on &amp; on; a dog sleeps. ", "", LONG]
"""Captions of several lengths. The last one is longer than most families take."""
TOLERANCE = 1e-4


class Padded(NamedTuple):
    """Rows of a string, padded with zeros to the longest length of the family."""

    values: Tensor
    mask: Tensor


def opened(folder: Path, family: str | None = None, **options: Any) -> FamilyEncoder:
    """The encoder of a folder in float32 on the CPU."""
    encoder = load_text_encoder(str(folder), EncoderOptions(family=family, **options), "cpu", "float32")
    assert isinstance(encoder, FamilyEncoder)
    return encoder


def embed(encoder: FamilyEncoder, captions: Sequence[str], padded_length: int | None = None) -> list[EmbeddedText]:
    """The arrays of captions in one batch, by default at the smallest of the family's lengths that holds them."""
    texts = encoder.tokenize([encoder.render(caption) for caption in captions])
    longest = max(text.length for text in texts)
    length = padded_length or next(length for length in encoder.card.lengths if length >= longest)
    return encoder.encode(texts, length)


def padded(array: TextArray, embedded: EmbeddedArray) -> Padded:
    """Pad the rows of a string as the loader does for a family that takes a fixed length."""
    values, mask = torch.zeros(array.max_tokens, array.width), torch.zeros(array.max_tokens, dtype=torch.bool)
    rows, tokens = len(embedded.values), embedded.length
    left = array.padding_side == "left"
    values[len(values) - rows if left else 0 :][:rows] = torch.from_numpy(np.asarray(embedded.values))
    mask[len(mask) - tokens if left else 0 :][:tokens] = True
    assert embedded.values.dtype == np.float32 and (not array.trimmed or rows == tokens)
    return Padded(values, mask)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    """Fail unless two tensors have the same shape and differ by less than the promised tolerance."""
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    assert ours.numel() == 0 or float((ours - expected.float()).abs().max()) < TOLERANCE


def check_batches(
    encoder: FamilyEncoder, captions: Sequence[str] = ("a cat", "", "a dog sleeps on the grass " * 4)
) -> None:
    """Fail unless each caption gets the same embedding in a batch, padded to the longest length, as alone."""
    for caption, together in zip(captions, embed(encoder, captions, encoder.card.lengths[-1]), strict=True):
        alone = embed(encoder, [caption])[0]
        assert together.keys() == alone.keys() == {array.name for array in encoder.card.arrays}
        for name, array in together.items():
            assert array.length == alone[name].length
            assert_close(torch.from_numpy(array.values), torch.from_numpy(alone[name].values))
