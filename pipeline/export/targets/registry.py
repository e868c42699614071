"""The registry of export targets, by the name that ``--to`` takes."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.export.target import ExportTarget
from pipeline.export.targets.parquet import ParquetTarget

TARGETS: dict[str, type[ExportTarget]] = {target.name: target for target in (ParquetTarget,)}


def find_target(name: str) -> ExportTarget:
    """Return a new target of this name; ConfigError lists the known names otherwise."""
    if name not in TARGETS:
        raise ConfigError(f"there is no export target '{name}'; choose one of {', '.join(sorted(TARGETS))}")
    return TARGETS[name]()
