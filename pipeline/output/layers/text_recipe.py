"""The recipe of a text layer: everything that changes the bytes of its embeddings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pipeline.errors import ConfigError, check_recorded
from pipeline.recipe import FORMAT_VERSION
from pipeline.setting import Setting, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecipe:
    """How captions become embeddings. The names of the captions are no part of it, so that a layer can gain captions."""

    encoder: str
    """sha256 of the encoder's card. The job computes it from the encoder's files; it has no flag."""
    clean: Literal["none", "open-sora"] = "none"
    """Cleaning of captions before the family's own: none, or what Open-Sora 1.2's data tool does, twice."""
    aesthetic_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Column with an aesthetic score to append to captions, as Open-Sora 1.2 does."""
    motion_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Column with a motion score to append to captions, as Open-Sora 1.2 does."""
    camera_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Column with a camera motion, such as pan_right, to append to captions, as Open-Sora 1.2 does."""
    score_drop: float = 0.2
    """Probability with which each score is left out in training; captions get one form with and one without it."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the stored embeddings."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type in which the encoder computes; auto is bfloat16 with --gpus and float32 without."""
    lengths: Annotated[tuple[int, ...], Setting(metavar="N,...", comma_separated=True)] = ()
    """Lengths in tokens to which strings are padded for the encoder; by default those of the family."""
    batch_tokens: int = 16_384
    """Tokens per call of the encoder, padding included; a call has at least one string."""
    unit_strings: int = 512
    """Distinct strings per shard."""

    def __post_init__(self) -> None:
        check_positive(batch_tokens=self.batch_tokens, unit_strings=self.unit_strings)
        if not 0 <= self.score_drop <= 1:
            raise ConfigError(f"--score-drop must be between 0 and 1, got {self.score_drop}")
        if list(self.lengths) != sorted(set(self.lengths)) or (self.lengths and self.lengths[0] < 1):
            raise ConfigError(f"--lengths must be positive and rise, got {','.join(map(str, self.lengths))}")

    def batch_size(self, padded_length: int) -> int:
        """Number of strings of a padded length in one call of the encoder."""
        return max(1, self.batch_tokens // padded_length)

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``dataset.json`` of the layer records and ``fingerprint`` hashes."""
        return dataclasses.asdict(self) | {"lengths": list(self.lengths)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TextRecipe:
        """The recipe that ``to_json`` wrote, also if an earlier version did: fields that it lacks have their default.

        IntegrityError names fields and words that this program does not know, and fields that are missing.
        """
        check_recorded("the layer's recipe", values, cls)
        return cls(**values | {"lengths": tuple(values.get("lengths", ()))})

    @property
    def fingerprint(self) -> str:
        """Short hash over the format version and the fields that differ from their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        changed = {name: value for name, value in self.to_json().items() if getattr(self, name) != defaults[name]}
        return hashlib.sha256(json.dumps([FORMAT_VERSION, "text", changed], sort_keys=True).encode()).hexdigest()[:12]
