"""The card of a family, and the strings that its tokenizers get: ``FamilyRenderer``, which needs no weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.output.layers.text_card import TextArray, TextCard
from pipeline.text.captions.cleaning import clean_lowercase, clean_wan, keep
from pipeline.text.encoders.family import Branch
from pipeline.text.encoders.folders import EncoderFolder, Part, encoder_sha256, tokenizer_sha256
from stvae.checkpoints.files import WeightsError, read_json

CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": keep,
    "wan": clean_wan,
    "lowercase": clean_lowercase,
    "strip": str.strip,
}
QUOTED = re.compile('"(.*?)"|“(.*?)”')
LENGTH_STEP = 32
"""Distance of the lengths to which strings are padded; it grows with the length."""


def quoted_texts(caption: str) -> str:
    """The texts between quotes, as HunyuanVideo 1.5's byT5 reads them: ``Text "a". Text "b". ``. Empty if there are none."""
    texts = dict.fromkeys(straight or curly for straight, curly in QUOTED.findall(caption))
    return "".join(f'Text "{text}". ' for text in texts)


def padded_lengths(max_tokens: int, cropped: int) -> tuple[int, ...]:
    """Lengths for strings of up to ``max_tokens``, and ``cropped`` more tokens in front of each, in rising order."""
    lengths, step = [], LENGTH_STEP
    length = step
    while length < max_tokens:
        lengths.append(length)
        if length >= 16 * step:
            step *= 2
        length += step
    return tuple(cropped + length for length in [*lengths, max_tokens])


class FamilyRenderer:
    """Makes the strings for the tokenizers of a family out of captions."""

    def __init__(self, folder: EncoderFolder, *, large: bool = False) -> None:
        """Make the card. ConfigError if embeddings would be too large and ``large`` is false."""
        self.folder = folder
        self._clean = CLEANINGS[folder.family.cleaning]
        arrays = _arrays(folder)
        _refuse_large(folder, arrays, large)
        main = folder.parts[0]
        self.card = TextCard(
            family=folder.family.name,
            encoder_sha256=encoder_sha256(folder),
            tokenizer_sha256=tokenizer_sha256(folder),
            template=_template(main.branch),
            cut="; ".join(_cut(folder, part) for part in folder.parts),
            arrays=arrays,
            lengths=_lengths(folder),
            null=folder.family.null,
        )

    def render(self, caption: str) -> tuple[str, ...]:
        """The strings for the tokenizers, one per branch. A chat's constant messages are put around it by the tokenizer.

        Halves of surrogate pairs, which are no text, become question marks.
        """
        cleaned = self._clean(caption.encode("utf-8", "replace").decode())
        return tuple(_prompt(part.branch, cleaned) for part in self.folder.parts)


def instruction_tokens(part: Part) -> int:
    """Number of tokens of an instruction before captions, counted by the tokenizer itself; 0 if there is none."""
    if part.branch.prompt != "instruction":
        return 0
    from tokenizers import Tokenizer

    path = part.tokenizer / "tokenizer.json"
    try:
        return len(Tokenizer.from_file(str(path)).encode(part.branch.template).ids)
    except Exception as error:  # it raises plain exceptions
        raise WeightsError(f"'{path}' cannot be read as a tokenizer: {error}") from None


def _prompt(branch: Branch, caption: str) -> str:
    match branch.prompt:
        case "template":
            return branch.template.replace("{}", caption)
        case "instruction":
            return branch.template + caption
        case "glyphs":
            return quoted_texts(caption)
        case "chat" if not branch.typed_content:
            return caption or " "
    return caption


def _template(branch: Branch) -> str:
    return branch.template if not branch.template or branch.prompt == "template" else branch.template + "{}"


def _lengths(folder: EncoderFolder) -> tuple[int, ...]:
    """Lengths for the main encoder. One only, where padding changes or is part of the embeddings."""
    main = folder.parts[0]
    branch = main.branch
    if branch.prompt == "instruction":  # less two tokens, as its pipeline counts
        return padded_lengths(branch.max_tokens, instruction_tokens(main) - 2)
    if branch.is_vector or branch.sees_padding or not branch.trimmed or folder.connected:
        return (branch.max_tokens + branch.crop,)
    return padded_lengths(branch.max_tokens, branch.crop)


def _arrays(folder: EncoderFolder) -> tuple[TextArray, ...]:
    arrays: list[TextArray] = []
    for part in folder.parts:
        branch = part.branch
        for name, width in _widths(folder, part).items():
            if branch.is_vector:
                arrays.append(TextArray(name=name, form="vector", width=width, masked=False))
                continue
            arrays.append(
                TextArray(
                    name=name,
                    form="tokens",
                    width=width,
                    max_tokens=branch.max_tokens,
                    trimmed=branch.trimmed and not folder.connected,
                    padding_side=branch.padding_side,
                    fixed_length=branch.fixed_length,
                    masked=branch.masked,
                )
            )
    return tuple(arrays)


def _widths(folder: EncoderFolder, part: Part) -> dict[str, int]:
    """Widths of the arrays of a branch by name."""
    match part.branch.taken:
        case "stack" if folder.projection is not None:
            return _projected_widths(folder.projection, folder.connected)
        case "stack":
            return {part.branch.array: part.width * (part.num_layers + 1)}
        case "standardized":
            return {part.branch.array: part.width * part.num_layers}
    return {part.branch.array: part.width}


def _projected_widths(projection: Path, connected: bool) -> dict[str, int]:
    """Widths of LTX-2's arrays. Before the connector, audio and video share one array unless they have projections."""
    path = projection / "config.json"
    config = {
        "caption_channels": 3840,
        "video_hidden_dim": 4096,
        "audio_hidden_dim": 2048,
        **{f"{name}_connector_num_attention_heads": 30 for name in ("video", "audio")},
        **{f"{name}_connector_attention_head_dim": 128 for name in ("video", "audio")},
        **read_json(path),
    }
    try:
        if connected:
            return {
                name: config[f"{name}_connector_num_attention_heads"] * config[f"{name}_connector_attention_head_dim"]
                for name in ("video", "audio")
            }
        if config.get("per_modality_projections"):
            return {name: int(config[f"{name}_hidden_dim"]) for name in ("video", "audio")}
        return {"text": int(config["caption_channels"])}
    except (TypeError, ValueError):
        raise WeightsError(f"'{path}' has sizes that are no numbers; download it again") from None


def _cut(folder: EncoderFolder, part: Part) -> str:
    branch = part.branch
    words = {
        "last": "last_hidden_state",
        "state": f"hidden_states[{branch.state}]",
        "stack": "all hidden states, normalized and projected" if folder.projection else "all hidden states",
        "standardized": "all hidden states after the first, each standardized",
        "pooled": "pooler_output",
    }[branch.taken]
    crop = f" without the first {branch.crop} tokens" if branch.crop else ""
    place = " after the connector" if folder.connected else ""
    tag = f"; every token has the tag {folder.family.token_tag}" if folder.family.token_tag is not None else ""
    return f"{branch.array}: {words}{crop}{place}{tag}"


def _refuse_large(folder: EncoderFolder, arrays: tuple[TextArray, ...], large: bool) -> None:
    """Raise ConfigError if the family's captions take more space than is sensible, unless ``large``."""
    family = folder.family
    if large or not family.large_mb or folder.projection is not None:
        return
    size_mb = sum(2 * array.width * max(array.max_tokens, 1) for array in arrays) / 1e6
    advice = (
        "give a pipeline that has a folder connectors with their projection, or " if family.needs_projection else ""
    )
    raise ConfigError(
        f"the embeddings of {family.name} take {size_mb:.1f} MB for each caption of {arrays[0].max_tokens} tokens "
        f"({family.large_mb} MB with the published model); {advice}give --allow-large if you want them all the same"
    )
