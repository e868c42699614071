"""What the facts of sidecars add up to: sums of latents per channel, bytes, and units of other environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Totals:
    """Of any number of units. Sums are float64, added one unit after the other."""

    num_samples: int = 0
    latent_count: int = 0
    """Values in each channel."""
    latent_sum: list[float] = field(default_factory=list)
    latent_sum_of_squares: list[float] = field(default_factory=list)
    """Per channel, of the stored means."""
    size_bytes: int = 0
    """Of the shards."""
    environments: int = 0
    """Units that were made in another environment than the one that began the output."""

    def add(self, facts: Mapping[str, str]) -> None:
        """One more sidecar's, as ``unit_metadata_facts`` gives them."""
        self.num_samples += int(facts["num_samples"])
        self.latent_count += int(facts["latent_count"])
        self.latent_sum = _added(self.latent_sum, json.loads(facts["latent_sum"]))
        self.latent_sum_of_squares = _added(self.latent_sum_of_squares, json.loads(facts["latent_sum_of_squares"]))
        self.size_bytes += int(facts["size_bytes"]) if "shard" in facts else 0
        self.environments += "environment" in facts


def _added(total: list[float], more: list[float]) -> list[float]:
    return [a + b for a, b in zip(total, more, strict=True)] if total else more
