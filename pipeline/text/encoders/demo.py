"""A tiny T5 with made-up weights, for the demo and for tests: a real encoder without a file. Its tokens are bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.output.layers.text_card import Null, TextArray, TextCard
from pipeline.text.encoder import EmbeddedArray, EmbeddedText, TokenizedText

if TYPE_CHECKING:
    from transformers import T5EncoderModel

WIDTH, HEAD_WIDTH, HEADS, FEED_FORWARD = 32, 8, 4, 64
END, FIRST_BYTE = 1, 3
"""Token ids: 0 pads, 1 ends a string, 2 is unused; then one id per byte."""
LENGTHS = (16, 32, 64)


@cache
def weights() -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of the encoder by name. The generator's numbers are the same in every version of numpy."""
    generator = np.random.RandomState(0)
    inner, block = HEAD_WIDTH * HEADS, "encoder.block.0.layer"
    shapes = {
        "shared.weight": (FIRST_BYTE + 256, WIDTH),
        **{f"{block}.0.SelfAttention.{name}.weight": (inner, WIDTH) for name in "qkv"},
        f"{block}.0.SelfAttention.o.weight": (WIDTH, inner),
        f"{block}.0.SelfAttention.relative_attention_bias.weight": (32, HEADS),
        f"{block}.1.DenseReluDense.wi.weight": (FEED_FORWARD, WIDTH),
        f"{block}.1.DenseReluDense.wo.weight": (WIDTH, FEED_FORWARD),
    }
    tensors = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = (f"{block}.0.layer_norm.weight", f"{block}.1.layer_norm.weight", "encoder.final_layer_norm.weight")
    return tensors | {name: np.ones(WIDTH, np.float32) for name in norms}


def _card() -> TextCard:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights().items()):
        digest.update(name.encode() + tensor.tobytes())
    return TextCard(
        family="demo",
        encoder_sha256=digest.hexdigest(),
        tokenizer_sha256=hashlib.sha256(b"bytes").hexdigest(),
        arrays=(TextArray(name="t5", form="tokens", width=WIDTH, max_tokens=LENGTHS[-1]),),
        lengths=LENGTHS,
        null=Null(kind="text"),
    )


class DemoRenderer:
    """Gives captions to the tokenizer as they are."""

    def __init__(self) -> None:
        self.card = _card()

    def render(self, caption: str) -> tuple[str, ...]:
        """The caption itself."""
        return (caption,)


class DemoEncoder(DemoRenderer):
    """The tiny T5 on a device."""

    def __init__(self, model: T5EncoderModel, device: str) -> None:
        super().__init__()
        self._model = model
        self._device = device

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[TokenizedText]:
        """Bytes as ids, and the id that ends a string."""
        return [self._tokenize(text) for (text,) in texts]

    def encode(self, batch: Sequence[TokenizedText], padded_length: int) -> list[EmbeddedText]:
        """The last hidden states, trimmed to the tokens of each string."""
        import torch

        ids_BL = torch.zeros(len(batch), padded_length, dtype=torch.long)
        mask_BL = torch.zeros(len(batch), padded_length, dtype=torch.long)
        for row, text in enumerate(batch):
            ids_BL[row, : text.length] = torch.tensor(text.ids[0])
            mask_BL[row, : text.length] = 1
        with torch.inference_mode():
            output: Any = self._model(input_ids=ids_BL.to(self._device), attention_mask=mask_BL.to(self._device))
        hidden_BLD = output.last_hidden_state.float().cpu().numpy()
        return [
            {"t5": EmbeddedArray(values=hidden_LD[: text.length], length=text.length)}
            for text, hidden_LD in zip(batch, hidden_BLD, strict=True)
        ]

    def encode_null(self) -> EmbeddedText:
        """The embedding of the empty string."""
        return self.encode(self.tokenize([("",)]), LENGTHS[0])[0]

    def _tokenize(self, text: str) -> TokenizedText:
        content = text.encode("utf-8", "replace")
        kept = content[: LENGTHS[-1] - 1]
        ids = (*(FIRST_BYTE + byte for byte in kept), END)
        return TokenizedText(ids=(ids,), num_tokens=len(content) + 1, truncated=len(kept) < len(content))


def load_demo(device: str, compute_dtype: str) -> DemoEncoder:
    """The tiny T5 with its weights on a device."""
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=FIRST_BYTE + 256,
        d_model=WIDTH,
        d_kv=HEAD_WIDTH,
        d_ff=FEED_FORWARD,
        num_layers=1,
        num_heads=HEADS,
        feed_forward_proj="relu",
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = T5EncoderModel(config)
        model.eval()
    tensors = {name: torch.from_numpy(tensor) for name, tensor in weights().items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)
    return DemoEncoder(model.to(device, getattr(torch, compute_dtype)), device)
