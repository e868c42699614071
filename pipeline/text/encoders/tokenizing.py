"""Strings to token ids, as each family's pipeline makes them, but without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.text.encoders.family import Branch
from pipeline.text.encoders.folders import Part
from stvae.checkpoints.files import WeightsError, describe, read_json


class TokenIds(NamedTuple):
    """One string as the ids of its tokens."""

    ids: tuple[int, ...]
    num_tokens: int
    """Number of tokens before the string was cut."""


class BranchTokenizer:
    """The tokenizer of one branch."""

    def __init__(self, part: Part, *, zero_empty: bool) -> None:
        """Read the tokenizer's files. WeightsError if they are damaged, or pad on another side than the branch."""
        self.branch = part.branch
        self._zero_empty = zero_empty
        self._tokenizer = _load_tokenizer(part)
        self.instruction_tokens = 0
        if self.branch.prompt == "instruction":
            self.instruction_tokens = len(self._tokenizer.encode(self.branch.template))
        self.max_ids = self.branch.max_tokens + self.branch.crop
        if self.instruction_tokens:
            self.max_ids += self.instruction_tokens - 2
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self._tokenizer.eos_token_id or 0
        self.padding_side: str = self._tokenizer.padding_side if not self.branch.trimmed else self.branch.padding_side
        if self.branch.crop and self._tokenizer.padding_side != "right":
            raise WeightsError(
                f"the tokenizer in '{part.tokenizer}' pads on the {self._tokenizer.padding_side}; the family cuts tokens "
                "off the beginning of a string, so padding must be on the right"
            )

    def __call__(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each string, with special tokens and cut to the longest length."""
        return [self._tokenize(text) for text in texts]

    def bare_ids(self, text: str) -> tuple[int, ...]:
        """The ids of a string without the instruction that others have in front of them."""
        return self._ids(text, self.branch.max_tokens)

    def _tokenize(self, text: str) -> TokenIds:
        if not text and (self._zero_empty or self.branch.prompt == "glyphs"):
            return TokenIds((), 0)
        if self.branch.prompt == "chat":
            text = self._tokenizer.apply_chat_template(
                self._messages(text), tokenize=False, add_generation_prompt=self.branch.answer_start
            )
        whole = self._ids(text, None)
        if len(whole) <= self.max_ids:
            return TokenIds(whole, len(whole))
        if self.branch.cut_as_text:
            text = self._cut_like_kandinsky(text, whole)
        return TokenIds(self._ids(text, self.max_ids), len(whole))

    def _ids(self, text: str, max_ids: int | None) -> tuple[int, ...]:
        """The ids of a string, cut to a length if there is one. Chats have their special tokens already."""
        encoded = self._tokenizer(
            text,
            add_special_tokens=self.branch.special_tokens and self.branch.prompt != "chat",
            truncation=max_ids is not None,
            max_length=max_ids,
            return_attention_mask=False,
            verbose=False,
        )
        return tuple(encoded["input_ids"])

    def _messages(self, text: str) -> list[dict[str, Any]]:
        """A chat with the branch's system message, if there is one, and a user who says ``text``."""
        roles = [("system", self.branch.template)] if self.branch.template else []
        return [
            {"role": role, "content": [{"type": "text", "text": words}] if self.branch.typed_content else words}
            for role, words in [*roles, ("user", text)]
        ]

    def _cut_like_kandinsky(self, text: str, ids: tuple[int, ...]) -> str:
        """A long string without its last characters: as many as the tokens beyond the limit stand for."""
        beyond = ids[self.branch.crop : -2][self.branch.max_tokens - 2 :]
        removed = self._tokenizer.decode(list(beyond))
        return text[: -len(removed)] if removed else text


def _load_tokenizer(part: Part) -> Any:
    """The tokenizer of a folder, read without the network and without code from the folder."""
    import transformers

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        try:
            return transformers.AutoTokenizer.from_pretrained(str(part.tokenizer), **options)
        except ValueError:  # a model's configuration beside it can hide the class that the tokenizer itself names
            named = read_json(part.tokenizer / "tokenizer_config.json").get("tokenizer_class")
            if named not in dir(transformers) or not str(named).endswith(("Tokenizer", "TokenizerFast")):
                raise
            return getattr(transformers, named).from_pretrained(str(part.tokenizer), **options)
    except Exception as error:  # it raises anything for files that do not go together
        raise WeightsError(f"the tokenizer in '{part.tokenizer}' cannot be used: {describe(error)}") from None


def branch_rows(branch: Branch, num_ids: int, instruction_tokens: int) -> list[int]:
    """Positions of the tokens of a string whose embeddings are kept.

    After an instruction, these are the first token and those from the instruction's last one on, as SANA keeps them.
    """
    if instruction_tokens:
        return [0, *range(instruction_tokens - 1, num_ids)]
    return list(range(min(branch.crop, num_ids), num_ids))
