"""Families of models: ``Family`` says how captions become embeddings, with one ``Branch`` for each text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.output.layers.text_card import Null

Prompt = Literal["caption", "template", "instruction", "chat", "glyphs"]
Taken = Literal["last", "state", "stack", "standardized", "pooled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One text encoder of a family: what it reads, and what is taken from it."""

    array: str = "text"
    """Name of the array that it makes."""
    models: tuple[str, ...]
    """The ``model_type`` that the encoder's ``config.json`` may have."""
    prompt: Prompt = "caption"
    """The text that it reads: the caption, ``template`` with the caption in it, ``template`` and then the caption
    (``instruction``), a chat with ``template`` as its system message, or the texts between quotes (``glyphs``)."""
    template: str = ""
    answer_start: bool = False
    """True if a chat ends with the beginning of the model's answer."""
    typed_content: bool = False
    """True if the messages of a chat are lists of typed parts, as for models that see pictures."""
    max_tokens: int
    """Largest number of tokens whose embeddings are kept, hence without ``crop``."""
    crop: int = 0
    """Number of leading tokens whose embeddings are not kept."""
    cut_as_text: bool = False
    """True if the family shortens a long string before it cuts its tokens."""
    special_tokens: bool = True
    """True if the tokenizer adds its special tokens."""
    taken: Taken = "last"
    """``last``: the last hidden state; ``state``: the hidden state number ``state``; ``stack``: all hidden states side by
    side; ``standardized``: all but the first, each standardized over its features, one behind the other; ``pooled``: the
    pooled vector."""
    state: int = 0
    """For ``state``: number of the hidden state; 0 is the embedding of tokens, and negative numbers count from the end."""
    sees_padding: bool = False
    """True if the encoder runs without a mask at ``max_tokens``, so that padding changes the embeddings of all tokens."""
    trimmed: bool = True
    """True if the embeddings of padding are not kept."""
    fixed_length: bool = False
    """True if the model takes ``max_tokens`` rows, whatever the length of the text."""
    masked: bool = True
    """True if the model takes a mask that shows the tokens."""
    padding_side: Literal["left", "right"] = "right"

    @property
    def is_vector(self) -> bool:
        """True if the branch makes one vector per caption."""
        return self.taken == "pooled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A row of the table: models that take the same text embeddings."""

    name: str
    branches: tuple[Branch, ...]
    """The main encoder first. Batches are formed by the length of its tokens."""
    pipelines: tuple[str, ...] = ()
    """Classes of diffusers' pipelines whose folders belong to the family."""
    cleaning: Literal["none", "wan", "lowercase", "strip"] = "none"
    """The cleaning that the family's own code applies to every caption."""
    null: Null
    zero_empty: bool = False
    """True if the empty caption has no tokens and an empty mask."""
    needs_projection: bool = False
    """True if embeddings go through a projection that is stored with a connector (LTX-2)."""
    large_mb: float = 0.0
    """Size of a caption with the published model in megabytes, if it is too large to be kept without being asked for. A
    projection makes it small."""
    token_tag: int | None = None
    """Tag of every token, for models that tell kinds of tokens apart."""
