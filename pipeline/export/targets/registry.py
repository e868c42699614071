"""The registry of export targets, by the name that ``--to`` takes."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.export.target import ExportTarget
from pipeline.export.targets.automodel import AutomodelTarget
from pipeline.export.targets.chunks.litdata import LitdataTarget
from pipeline.export.targets.chunks.mds import MdsTarget
from pipeline.export.targets.fastvideo import FastVideoTarget
from pipeline.export.targets.ltx import LtxTarget
from pipeline.export.targets.musubi import MusubiTarget
from pipeline.export.targets.open_sora import OpenSoraTarget
from pipeline.export.targets.parquet import ParquetTarget
from pipeline.export.targets.tars.energon import EnergonTarget
from pipeline.export.targets.tars.fastgen import FastGenTarget
from pipeline.export.targets.veomni import VeOmniTarget

TARGETS: dict[str, type[ExportTarget]] = {
    target.name: target
    for target in (
        *(LtxTarget, AutomodelTarget, FastVideoTarget, EnergonTarget, FastGenTarget, VeOmniTarget, MusubiTarget),
        *(OpenSoraTarget, ParquetTarget, MdsTarget, LitdataTarget),
    )
}


def find_target(name: str) -> ExportTarget:
    """Return a new target of this name; ConfigError lists the known names otherwise."""
    if name not in TARGETS:
        raise ConfigError(f"there is no export target '{name}'; choose one of {', '.join(sorted(TARGETS))}")
    return TARGETS[name]()
