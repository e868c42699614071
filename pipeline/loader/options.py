"""What a batch holds, and which rank it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import torch

from pipeline.errors import ConfigError
from pipeline.loader.epochs import Shapes
from pipeline.output.members import LATENT, Member


def place_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and how many there are."""
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
    return rank, world_size


def check_captions(captions: Mapping[str, float] | None, schema: pa.Schema) -> None:
    """ConfigError unless every name is a text column (or empty) and the weights can be."""
    if captions is None:
        return
    texts = (pa.string(), pa.large_string(), pa.list_(pa.string()), pa.large_list(pa.large_string()))
    known = [field.name for field in schema if field.type in texts]
    wrong = [name for name in captions if name and name not in known]
    if wrong:
        raise ConfigError(f"captions: there is no text column '{wrong[0]}'; there are {', '.join(known)}")
    if not captions or min(captions.values()) < 0 or sum(captions.values()) <= 0:
        raise ConfigError(f"captions needs weights that are not negative and not all zero, got {dict(captions)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a batch holds; see ``LatentDataset.batches``."""

    latent: Literal["mean", "sample"] = "mean"
    normalized: bool = True
    members: tuple[Member, ...] = (LATENT,)
    captions: Mapping[str, float] | None = None
    shapes: Shapes = "bucket"
    blanks: bool = False
    patch: tuple[int, int, int] = (1, 1, 1)
    dtype: torch.dtype | None = torch.float32
    device: torch.device
    copy: bool = False
    verify: bool = False
