"""A family's encoders with their weights: ``FamilyEncoder`` turns token ids into embeddings.

Shape suffixes: B strings, L positions, D values per token, S hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.text.encoder import EmbeddedArray, EmbeddedText, TokenizedText
from pipeline.text.encoders.folders import EncoderFolder, Part
from pipeline.text.encoders.ltx2 import Projection
from pipeline.text.encoders.models import load_model, quiet, text_config
from pipeline.text.encoders.renderer import FamilyRenderer
from pipeline.text.encoders.tokenizing import BranchTokenizer, TokenIds, branch_rows
from stvae.checkpoints.files import WeightsError
from stvae.numerics import exact_numerics


class FamilyEncoder(FamilyRenderer):
    """The text encoders of a family on a device."""

    def __init__(self, folder: EncoderFolder, *, large: bool, device: str, compute_dtype: str) -> None:
        """Load tokenizers and weights. ``compute_dtype``: float32, bfloat16 or float16."""
        super().__init__(folder, large=large)
        dtype: torch.dtype = getattr(torch, compute_dtype)
        projection = Projection(folder.projection, device, dtype) if folder.projection is not None else None
        with quiet():
            self._branches = [
                _BranchEncoder(part, folder, projection if part.branch.taken == "stack" else None, device, dtype)
                for part in folder.parts
            ]

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[TokenizedText]:
        """Token ids of rendered strings. The result of a string does not depend on the others."""
        columns = [branch.tokenizer([text[number] for text in texts]) for number, branch in enumerate(self._branches)]
        return [_tokenized(tokens) for tokens in zip(*columns, strict=True)]

    def encode(self, batch: Sequence[TokenizedText], padded_length: int) -> list[EmbeddedText]:
        """The arrays of each string, as float32 on the host. The main encoder gets ids padded to ``padded_length``."""
        if len(self.card.lengths) == 1 and padded_length != self.card.lengths[0]:
            raise ConfigError(
                f"the family {self.card.family} pads every string to {self.card.lengths[0]} tokens, because padding changes "
                f"its embeddings; got {padded_length}"
            )
        arrays: list[dict[str, EmbeddedArray]] = [{} for _ in batch]
        for number, branch in enumerate(self._branches):
            length = padded_length if number == 0 else branch.tokenizer.max_ids
            ids = [text.ids[number] for text in batch]
            for text_arrays, embedded in zip(arrays, branch.encode(ids, length), strict=True):
                text_arrays.update(embedded)
        return list(arrays)

    def encode_null(self) -> EmbeddedText:
        """The null of SANA-Video: the empty caption without the instruction that other captions have."""
        branch = self._branches[0]
        return branch.encode_bare("")


def _tokenized(tokens: tuple[TokenIds, ...]) -> TokenizedText:
    return TokenizedText(
        ids=tuple(branch.ids for branch in tokens),
        num_tokens=tokens[0].num_tokens,
        truncated=any(branch.num_tokens > len(branch.ids) for branch in tokens),
    )


class _BranchEncoder:
    """One encoder: its tokenizer, its model, and what is taken from it."""

    def __init__(
        self, part: Part, folder: EncoderFolder, projection: Projection | None, device: str, dtype: torch.dtype
    ) -> None:
        self._part = part
        self._branch = part.branch
        self._device = device
        self._projection = projection
        self._connected = folder.connected
        self._state, layers = _state_and_layers(part)
        config = text_config(part, layers)
        self.tokenizer = BranchTokenizer(part, zero_empty=folder.family.zero_empty)
        self._model = load_model(part, config, device, dtype)

    def encode(self, ids: Sequence[tuple[int, ...]], length: int) -> list[dict[str, EmbeddedArray]]:
        """The arrays of each string of ids. Strings without ids get arrays without rows.

        They take part in the call all the same, because the last bits of an embedding depend on the number of rows.
        """
        nothing = {self._branch.array: EmbeddedArray(torch.zeros(0, self._part.width).numpy(), 0)}
        if not any(ids):
            return [nothing for _ in ids]
        outputs = self._run(ids, length)
        return [arrays if string else nothing for string, arrays in zip(ids, outputs, strict=True)]

    def encode_bare(self, text: str) -> dict[str, EmbeddedArray]:
        """The arrays of a string without the branch's instruction."""
        ids = self.tokenizer.bare_ids(text)
        return self._run([ids], len(ids), bare=True)[0]

    @torch.inference_mode()
    def _run(self, ids: Sequence[tuple[int, ...]], length: int, bare: bool = False) -> list[dict[str, EmbeddedArray]]:
        left = self.tokenizer.padding_side == "left"
        ids_BL = torch.full((len(ids), length), self.tokenizer.pad_id, dtype=torch.long)
        mask_BL = torch.zeros(len(ids), length, dtype=torch.long)
        for row, string in enumerate(ids):
            place = slice(length - len(string), length) if left else slice(len(string))
            ids_BL[row, place] = torch.tensor(string)
            mask_BL[row, place] = 1
        with exact_numerics():
            arrays = self._take(ids_BL.to(self._device), mask_BL.to(self._device))
        host = {name: tensor.cpu().float() for name, tensor in arrays.items()}
        instruction = 0 if bare else self.tokenizer.instruction_tokens
        return [
            {name: self._array(tensor[row], len(string), instruction) for name, tensor in host.items()}
            for row, string in enumerate(ids)
        ]

    def _array(self, values: Tensor, num_ids: int, instruction_tokens: int) -> EmbeddedArray:
        """The rows of one string that are kept, out of those of all positions."""
        if self._branch.is_vector:
            return EmbeddedArray(values.numpy().copy(), 1)
        if self._connected:  # registers stand in the places of padding
            return EmbeddedArray(values.numpy().copy(), len(values))
        if not self._branch.trimmed:
            return EmbeddedArray(values.numpy().copy(), num_ids)
        rows = branch_rows(self._branch, num_ids, instruction_tokens)
        offset = len(values) - num_ids if self.tokenizer.padding_side == "left" else 0
        return EmbeddedArray(values[[offset + row for row in rows]].numpy(), len(rows))

    def _take(self, ids_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """The arrays of a batch ``[B,L,D]``, or ``[B,D]`` for a vector, at all positions."""
        taken, name = self._branch.taken, self._branch.array
        inputs: dict[str, Any] = {"input_ids": ids_BL}
        if not (self._branch.sees_padding or self._branch.is_vector):
            inputs["attention_mask"] = mask_BL
        if self.tokenizer.padding_side == "left":  # positions as in a string that is padded to the longest length
            first = self.tokenizer.max_ids - ids_BL.shape[1]
            inputs["position_ids"] = torch.arange(first, self.tokenizer.max_ids, device=ids_BL.device)[None]
        if taken in ("last", "pooled"):
            output = self._model(**inputs)
            return {name: output.pooler_output if taken == "pooled" else output.last_hidden_state}
        states = self._model(**inputs, output_hidden_states=True).hidden_states
        if taken == "state":
            return {name: states[self._state]}
        if taken == "standardized":
            return {name: torch.cat([_standardize(state_BLD) for state_BLD in states[1:]], dim=-1)}
        stack_BLF = torch.stack(states, dim=-1).flatten(2)
        if self._projection is None:
            return {name: stack_BLF}
        if not self._connected:
            return self._projection.features(stack_BLF, mask_BL)
        return self._projection.connect(stack_BLF, mask_BL)


def _standardize(state_BLD: Tensor) -> Tensor:
    """Hidden states with mean 0 and deviation 1 over their values, as Cosmos-Predict 2.5 takes them."""
    return (state_BLD - state_BLD.mean(dim=-1, keepdim=True)) / (state_BLD.std(dim=-1, keepdim=True) + 1e-8)


def _state_and_layers(part: Part) -> tuple[int, int | None]:
    """Number of the hidden state that is taken, and of the layers that are needed for it; None needs all of them.

    A model normalizes its last hidden state, so one more layer is kept behind the state that is taken.
    """
    if part.branch.taken != "state":
        return 0, None
    state = part.branch.state + (part.num_layers + 1 if part.branch.state < 0 else 0)
    if (part.branch.state >= 0 and state >= part.num_layers) or state < 0:
        raise WeightsError(
            f"the family takes hidden state {part.branch.state}, before the last layer; the model in '{part.folder}' has "
            f"{part.num_layers} layers"
        )
    return state, state + 1 if state < part.num_layers else None
