"""A VAE's facts without tensors: identity, geometry and normalisation. Imports no torch."""

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
from stvae.geometry import Geometry, Rule, multiples, plain_geometry

OPEN_SORA_CLASS = "VideoAutoencoderPipeline"
"""``model_type`` of Open-Sora 1.2's published VAE."""
PROBE_TIMEOUT_S = 600.0


class UnknownVAE(ValueError):
    """A checkpoint folder of a class that this project does not know and could not find out about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the planner, the metadata and the loader need to know of a VAE.

    Normalised latents are ``(raw - shift) * scale`` with every factor of the model folded in. Shift and scale are one
    value per channel, or for each channel one per latent frame.
    """

    class_name: str
    sha256: str
    """Of the configuration, the weights, and what else the facts below come from."""
    latent_channels: int
    has_moments: bool
    """True where encoding gives a posterior: mean, then log-variance. False where it gives only a mean."""
    geometry: Geometry
    shift: Statistics
    scale: Statistics

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``dataset.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Card:
        """The card that ``to_json`` wrote."""
        lists = {key: _tuples(values[key]) for key in ("shift", "scale")}
        return cls(**(values | lists | {"geometry": Geometry.from_json(values["geometry"])}))

    @property
    def stored_channels(self) -> int:
        """Channels of what ``encode`` gives: mean and log-variance, or the mean."""
        return self.latent_channels * (2 if self.has_moments else 1)

    def statistics(self, latent_t: int) -> tuple[Statistics, Statistics]:
        """Shift and scale of a sample of ``latent_t`` latent frames."""
        shift, scale = (
            tuple(row[:latent_t] if isinstance(row, tuple) else row for row in values)
            for values in (self.shift, self.scale)
        )
        return shift, scale  # type: ignore[return-value]


def read_card(vae: str) -> Card:
    """The card of a VAE given by name, path or URL; reads its configuration and hashes its weights.

    A diffusers class that has no row in our table is asked in a subprocess, which takes some seconds. Raises
    UnknownVAE where that fails too, and for folders of neither kind.
    """
    folder = weights.find_folder(vae)
    config = weights.read_config(folder)
    if config.get("model_type") == OPEN_SORA_CLASS:
        return _open_sora_card(folder, config)
    if "Autoencoder" not in str(config.get("_class_name")):
        raise UnknownVAE(
            f"the VAE at '{vae}' is a {config.get('_class_name') or config.get('model_type')}; "
            f"known: {OPEN_SORA_CLASS} and diffusers' Autoencoder classes"
        )
    return _diffusers_card(folder, conventions.complete(config))


def temporal_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the temporal VAE that an Open-Sora configuration spells out; those left out have their published values.

    UnknownVAE for a type whose sizes are neither spelled out nor published.
    """
    given = dict(config["vae_temporal"])
    kind = given.pop("type")
    given.pop("from_pretrained", None)
    if kind != "VAE_Temporal_SD" and "temporal_downsample" not in given:
        raise UnknownVAE(f"vae_temporal of type '{kind}' does not say its sizes; known without: VAE_Temporal_SD")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def open_sora_geometry(config: dict[str, Any]) -> Geometry:
    """Geometry of an Open-Sora configuration. Levels and strides left out are the published ones."""
    levels = len(config["vae_2d"].get("config", {}).get("block_out_channels", [128, 256, 512, 512]))
    temporal_stride = 2 ** sum(temporal_sizes(config).get("temporal_downsample", (False, True, True)))
    return plain_geometry(2 ** (levels - 1), temporal_stride, multiples(1), config["micro_frame_size"])


def _open_sora_card(folder: Path, config: dict[str, Any]) -> Card:
    shift, scale = (weights.constants(folder, (key,))[key] for key in ("shift", "scale"))
    return Card(
        class_name=OPEN_SORA_CLASS,
        sha256=weights.fingerprint(folder),
        latent_channels=len(shift),
        has_moments=True,
        geometry=open_sora_geometry(config),
        shift=tuple(shift),
        # the checkpoint divides by its scale; ours multiplies
        scale=tuple(1 / s for s in scale),
    )


def _diffusers_card(folder: Path, config: dict[str, Any]) -> Card:
    class_name = config["_class_name"]
    row = conventions.TABLE.get(class_name)
    if row is None:
        geometry, has_moments = _ask(folder, class_name)
    else:
        geometry, has_moments = conventions.geometry(config), row.has_moments(config)
    sigma_data = _sigma_data(folder, class_name)
    found = weights.constants(folder, conventions.CONSTANTS, required=False)
    shift, scale = conventions.normalisation(config, found, sigma_data)
    if isinstance(shift[0], tuple):  # statistics per latent frame end somewhere
        most = 1 + (len(shift[0]) - 1) * geometry.temporal_stride
        geometry = dataclasses.replace(geometry, frames=dataclasses.replace(geometry.frames, most=most))
    return Card(
        class_name=class_name,
        sha256=weights.fingerprint(folder, extra=None if sigma_data is None else {"sigma_data": sigma_data}),
        latent_channels=conventions.latent_channels(config),
        has_moments=has_moments,
        geometry=geometry,
        shift=shift,
        scale=scale,
    )


def _ask(folder: Path, class_name: str) -> tuple[Geometry, bool]:
    """Geometry and kind of a class that is not in the table, from encoding shapes without data."""
    done = subprocess.run(
        [sys.executable, "-m", "stvae.probe", str(folder)],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode != 0:
        raise UnknownVAE(
            f"diffusers' {class_name} is not in our table and does not follow its conventions: {done.stderr[-1000:]}"
        )
    facts = json.loads(done.stdout)
    frames = Rule(**facts["frames"])
    geometry = plain_geometry(facts["spatial_stride"], facts["temporal_stride"], frames, facts["chunk_frames"])
    return geometry, facts["has_moments"]


def _sigma_data(folder: Path, class_name: str) -> float | None:
    """The scheduler's factor, from the pipeline's folder that the VAE lies in or as published."""
    published = conventions.SIGMA_DATA.get(class_name)
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if published is None or not scheduler.is_file():
        return published
    return float(json.loads(scheduler.read_text(encoding="utf-8")).get("sigma_data", published))


def _tuples(values: Any) -> Any:
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values
