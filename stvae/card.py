"""The facts of a VAE that need no tensors: identity, geometry and normalization. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvae import conventions, weights
from stvae.conventions import Statistics
from stvae.geometry import Geometry, SizeRule, multiples, plain_geometry

OPEN_SORA_CLASS = "VideoAutoencoderPipeline"
"""``model_type`` of Open-Sora 1.2's published VAE."""
PROBE_TIMEOUT_S = 600.0
"""Time for the subprocess that finds out about a class without a row in our table."""


class UnknownVAE(ValueError):
    """The class of a checkpoint is not in our table, and probing it failed too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The facts of a VAE that the planner, the metadata and the loader need.

    Normalized latents are ``(raw - shift) * scale``, which includes every factor of the model. Shift and scale hold one
    value per channel, or one value per channel and latent frame.
    """

    class_name: str
    sha256: str
    """Hash of the configuration, the weights and everything else that the facts below come from."""
    latent_channels: int
    has_moments: bool
    """True if encoding gives a posterior (mean, then log-variance), False if it gives only a mean."""
    geometry: Geometry
    shift: Statistics
    scale: Statistics

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values for ``dataset.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Card:
        """Build the card from the values that ``to_json`` returned."""
        statistics = {key: _as_tuples(values[key]) for key in ("shift", "scale")}
        return cls(**(values | statistics | {"geometry": Geometry.from_json(values["geometry"])}))

    @property
    def stored_channels(self) -> int:
        """Number of channels that ``encode`` returns: those of mean and log-variance, or of the mean alone."""
        return self.latent_channels * (2 if self.has_moments else 1)

    def statistics(self, latent_t: int) -> tuple[Statistics, Statistics]:
        """Return shift and scale of a sample with ``latent_t`` latent frames."""
        shift, scale = (
            tuple(channel[:latent_t] if isinstance(channel, tuple) else channel for channel in channels)
            for channels in (self.shift, self.scale)
        )
        return shift, scale  # type: ignore[return-value]


def read_card(vae: str) -> Card:
    """Read the card of a VAE given by name, path or URL. Reads its configuration and hashes its weights.

    A subprocess probes a diffusers class that has no row in our table, which takes some seconds. Raises UnknownVAE if
    that fails, or if the folder holds neither an Open-Sora 1.2 VAE nor an autoencoder of diffusers.
    """
    folder = weights.find_folder(vae)
    config = weights.read_config(folder)
    if config.get("model_type") == OPEN_SORA_CLASS:
        return _open_sora_card(folder, config)
    if "Autoencoder" not in str(config.get("_class_name")):
        raise UnknownVAE(
            f"the VAE at '{vae}' has the class {config.get('_class_name') or config.get('model_type')}; "
            f"expected {OPEN_SORA_CLASS} or an Autoencoder class of diffusers"
        )
    return _diffusers_card(folder, conventions.with_defaults(config))


def temporal_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of the temporal VAE in an Open-Sora configuration. Missing ones have their published values.

    Raises UnknownVAE for a type whose sizes are neither in the configuration nor published.
    """
    sizes = dict(config["vae_temporal"])
    type_name = sizes.pop("type")
    sizes.pop("from_pretrained", None)
    if type_name != "VAE_Temporal_SD" and "temporal_downsample" not in sizes:
        raise UnknownVAE(
            f"the configuration has a vae_temporal of type '{type_name}' without sizes; add 'temporal_downsample' and "
            "the other sizes to it (only VAE_Temporal_SD has published sizes)"
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}


def open_sora_geometry(config: dict[str, Any]) -> Geometry:
    """Return the geometry of an Open-Sora configuration. Missing levels and strides have their published values."""
    levels = len(config["vae_2d"].get("config", {}).get("block_out_channels", [128, 256, 512, 512]))
    temporal_stride = 2 ** sum(temporal_sizes(config).get("temporal_downsample", (False, True, True)))
    return plain_geometry(2 ** (levels - 1), temporal_stride, multiples(1), config["micro_frame_size"])


def _open_sora_card(folder: Path, config: dict[str, Any]) -> Card:
    shift, scale = (weights.read_constants(folder, (key,))[key] for key in ("shift", "scale"))
    return Card(
        class_name=OPEN_SORA_CLASS,
        sha256=weights.fingerprint(folder),
        latent_channels=len(shift),
        has_moments=True,
        geometry=open_sora_geometry(config),
        shift=tuple(shift),
        # the checkpoint divides by its scale, a card multiplies
        scale=tuple(1 / s for s in scale),
    )


def _diffusers_card(folder: Path, config: dict[str, Any]) -> Card:
    class_name = config["_class_name"]
    convention = conventions.TABLE.get(class_name)
    if convention is None:
        geometry, has_moments = _probe_class(folder, class_name)
    else:
        geometry, has_moments = conventions.geometry(config), convention.has_moments(config)
    sigma_data = _sigma_data(folder, class_name)
    constants = weights.read_constants(folder, conventions.CONSTANTS, required=False)
    shift, scale = conventions.normalization(config, constants, sigma_data)
    if isinstance(shift[0], tuple):  # statistics per latent frame limit the number of frames
        largest = 1 + (len(shift[0]) - 1) * geometry.temporal_stride
        geometry = dataclasses.replace(geometry, frames=dataclasses.replace(geometry.frames, largest=largest))
    return Card(
        class_name=class_name,
        sha256=weights.fingerprint(folder, extra=None if sigma_data is None else {"sigma_data": sigma_data}),
        latent_channels=conventions.latent_channels(config),
        has_moments=has_moments,
        geometry=geometry,
        shift=shift,
        scale=scale,
    )


def _probe_class(folder: Path, class_name: str) -> tuple[Geometry, bool]:
    """Return geometry and ``has_moments`` of a class that is not in the table. A subprocess encodes shapes only."""
    completed = subprocess.run(
        [sys.executable, "-m", "stvae.probe", str(folder)],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if completed.returncode != 0:
        raise UnknownVAE(
            f"diffusers' {class_name} has no row in stvae/conventions.py, and probing it failed; add a row, as "
            f"stvae/README.md explains: {completed.stderr[-1000:]}"
        )
    facts = json.loads(completed.stdout)
    frames = SizeRule(**facts["frames"])
    geometry = plain_geometry(facts["spatial_stride"], facts["temporal_stride"], frames, facts["chunk_frames"])
    return geometry, facts["has_moments"]


def _sigma_data(folder: Path, class_name: str) -> float | None:
    """Return the scheduler's factor, from the pipeline folder around the VAE or as published; None for most classes."""
    published = conventions.SIGMA_DATA.get(class_name)
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if published is None or not scheduler.is_file():
        return published
    return float(json.loads(scheduler.read_text(encoding="utf-8")).get("sigma_data", published))


def _as_tuples(values: Any) -> Any:
    return tuple(_as_tuples(value) for value in values) if isinstance(values, list) else values
