"""Find out which part of the batches this process gets: its rank among the processes that train on different samples."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pipeline.loader.options import BatchOptions

MODEL_PARALLEL = frozenset({"tp", "tensor", "cp", "context", "sp", "sequence", "ulysses", "ring", "pp", "pipeline"})
"""Names of mesh dimensions whose processes share the samples of a batch."""


def resolve_rank(options: BatchOptions) -> tuple[int, int]:
    """Return this process's rank and the number of processes.

    They come from the options (``rank`` and ``world_size``, or ``mesh``), else from ``torch.distributed`` where it is
    initialized, else from the variables ``RANK`` and ``WORLD_SIZE`` that launchers set, else they are 0 and 1.
    ConfigError if ``torch.distributed`` and the variables disagree.
    """
    if options.rank is not None and options.world_size is not None:
        return int(options.rank), int(options.world_size)
    if options.mesh is not None:
        return _rank_in_mesh(options.mesh)
    launched = _launched_rank()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return launched or (0, 1)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if launched not in (None, (rank, world_size)):
        raise ConfigError(
            f"torch.distributed says that this process is rank {rank} of {world_size}, but the variables RANK and "
            f"WORLD_SIZE say {launched[0]} of {launched[1]}; give rank= and world_size="
        )
    return rank, world_size


def _launched_rank() -> tuple[int, int] | None:
    """Return the rank and world size that the launcher set; None if there is none. ConfigError if they are not usable."""
    texts = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not any(texts.values()):
        return None
    try:
        rank, world_size = (int(text) for text in texts.values())
    except ValueError:
        rank, world_size = -1, -1
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"the variables RANK='{texts['RANK']}' and WORLD_SIZE='{texts['WORLD_SIZE']}' do not name a process; set both, "
            "unset both, or give rank= and world_size="
        )
    return rank, world_size


def _rank_in_mesh(mesh: DeviceMesh) -> tuple[int, int]:
    """Return the position of this process among the processes of a mesh, row by row, and their number."""
    names = mesh.mesh_dim_names or ()
    shared = [name for name in names if MODEL_PARALLEL & set(name.lower().split("_"))]
    if shared:
        raise ConfigError(
            f"the mesh has the dimension '{shared[0]}', whose processes work on the same samples; pass its data-parallel "
            f"part, such as mesh['dp']; the dimensions are {', '.join(names)}"
        )
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ConfigError("this process is not part of the mesh; pass a mesh that it belongs to")
    rank = 0
    for position, size in zip(coordinate, mesh.mesh.shape, strict=True):
        rank = rank * size + position
    return rank, mesh.size()
