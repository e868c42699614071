"""The facts of a VAE that need no tensors: identity, geometry and normalization. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvae import conventions, weights
from stvae.checkpoints.class_hint import likely_class
from stvae.checkpoints.files import describe, read_json
from stvae.checkpoints.find import suggestion
from stvae.classes.convention import Statistics
from stvae.classes.refused import REFUSED
from stvae.geometry import Geometry, SizeRule, multiples, plain_geometry, power_of_two

OPEN_SORA_CLASS = "VideoAutoencoderPipeline"
"""``model_type`` of Open-Sora 1.2's published VAE."""
PROBE_TIMEOUT_S = 600.0
"""Time for the subprocess that finds out about a class without a row in our table."""
WRONG_CONFIG = (ArithmeticError, AttributeError, LookupError, MemoryError, StopIteration, TypeError, ValueError)
"""Errors that a configuration with missing fields or fields of other types causes where it is read."""
MAX_STRIDE, MAX_CHANNELS, MAX_SIZE = 1 << 12, 1 << 14, 1 << 20
"""Largest stride and number of channels of a latent, and largest size in a rule. Published ones are far below."""
LEFT_OUT = ("or_one", "lacks_logvar", "assumed", "declared")
"""Fields that were added to the card later. Cards without them stay as they were."""
FLOAT32_MAX, FLOAT32_MIN = 3.4028234e38, 1.1754944e-38


class UnknownVAE(ValueError):
    """The class of a checkpoint is refused, or not in our table and not probed, or probing it failed."""


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
    lacks_logvar: bool = False
    """True if the class of diffusers returns a log-variance that is not the model's, so only means may be stored."""
    assumed: tuple[str, ...] = ()
    """Facts that were assumed of a class without a row in our table."""
    declared: bool = False
    """True if people said that this VAE made the latents, as for imported ones. Nothing verifies that it did."""

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values for ``dataset.json``. Fields with a default are left out if they have it."""
        values = dataclasses.asdict(self)
        rules = ((values["geometry"][axis], getattr(self.geometry, axis)) for axis in ("frames", "height", "width"))
        for record, source in ((values, self), *rules):
            for field in dataclasses.fields(source):
                if field.name in LEFT_OUT and getattr(source, field.name) == field.default:
                    del record[field.name]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Card:
        """Build the card from the values that ``to_json`` returned."""
        tuples = {key: _as_tuples(values[key]) for key in ("shift", "scale", "assumed") if key in values}
        return cls(**(values | tuples | {"geometry": Geometry.from_json(values["geometry"])}))

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


def read_card(vae: str, *, unlisted: bool = False) -> Card:
    """Read the card of a VAE given by name, path or URL. Reads its configuration and hashes its weights.

    unlisted: accept a diffusers class without a row in our table. A subprocess probes it, which takes some seconds, and
    the card says what was assumed of it. Raises UnknownVAE if that fails, or if the folder holds neither an Open-Sora 1.2
    VAE nor an autoencoder of diffusers that is supported.
    """
    checkpoint = weights.find_checkpoint(vae)
    config = weights.read_config(checkpoint)
    class_name = config.get("_class_name")
    is_open_sora = config.get("model_type") == OPEN_SORA_CLASS
    if not is_open_sora:
        _check_class(vae, checkpoint, config, unlisted)
    name = weights.config_name(checkpoint)
    try:
        card = _open_sora_card(checkpoint, config) if is_open_sora else _diffusers_card(checkpoint, config)
    except (weights.WeightsError, UnknownVAE):
        raise
    except WRONG_CONFIG as error:
        raise weights.WeightsError(
            f"{name} cannot be used for {class_name or OPEN_SORA_CLASS}: {describe(error)}"
        ) from None
    check_card(card, name)
    return card


def _check_class(vae: str, checkpoint: Path, config: dict[str, Any], unlisted: bool) -> None:
    """Raise UnknownVAE unless the class of a configuration has a row in our table, or may be probed."""
    class_name = config.get("_class_name")
    if class_name is None:
        raise UnknownVAE(
            f"{weights.config_name(checkpoint)} has no '_class_name'; add the class of diffusers that the model has, for "
            f'example "_class_name": "{likely_class(config)}"'
        )
    shown = f"the VAE at '{vae}' has the class {str(class_name)[:100]}"
    if not isinstance(class_name, str) or not class_name.isidentifier():
        raise UnknownVAE(f"{shown}; expected {OPEN_SORA_CLASS} or an autoencoder class of diffusers")
    if class_name in REFUSED:
        raise UnknownVAE(f"{shown}, which is not supported: {REFUSED[class_name]}")
    if class_name not in conventions.TABLE and not unlisted:
        is_named_like_a_vae = re.search(r"autoencoder|vae", class_name, re.IGNORECASE)
        raise UnknownVAE(
            f"{shown}, which has no row in our table of classes, so its range of pixels, its posterior and its "
            "normalization are not known; if they are the usual ones, give --unlisted-vae (unlisted=True in load_vae), "
            f"which probes its sizes and records what is assumed{'' if is_named_like_a_vae else suggestion(checkpoint)}"
        )


def check_card(card: Card, name: str) -> None:
    """Raise WeightsError, which begins with ``name``, if sizes or statistics are not those of any VAE."""
    geometry = card.geometry
    rules = (geometry.frames, geometry.height, geometry.width)
    sizes: dict[str, tuple[Any, int]] = {
        "spatial stride": (geometry.spatial_stride, MAX_STRIDE),
        "temporal stride": (geometry.temporal_stride, MAX_STRIDE),
        "number of latent channels": (card.latent_channels, MAX_CHANNELS),
        "number of frames per chunk": (1 if geometry.chunk_frames is None else geometry.chunk_frames, MAX_SIZE),
        **{f"{part} of a size": (getattr(rule, part), MAX_SIZE) for rule in rules for part in ("start", "step")},
    }
    for label, (value, largest) in sizes.items():
        if type(value) is not int or not 1 <= value <= largest:
            raise weights.WeightsError(f"{name} gives the {label} {str(value)[:100]}; expected 1 to {largest}")
    for label, values in (("shift", card.shift), ("scale", card.scale)):
        rows = [row if isinstance(row, tuple) else (row,) for row in values]
        if len(rows) != card.latent_channels or len({len(row) for row in rows}) != 1:
            raise weights.WeightsError(
                f"{name} and the weights give the {label} of {len(rows)} channels; expected {card.latent_channels}, with "
                "equally many values"
            )
        for value in (value for row in rows for value in row):
            is_number = type(value) in (int, float) and abs(value) <= FLOAT32_MAX  # false for NaN
            if not is_number or (label == "scale" and abs(value) < FLOAT32_MIN):
                raise weights.WeightsError(
                    f"{name} or the weights give latents the {label} {str(value)[:100]}; expected a finite number"
                    f"{', not 0' if label == 'scale' else ''}: correct scaling_factor, latents_mean and latents_std"
                )


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
    temporal_stride = power_of_two(sum(temporal_sizes(config).get("temporal_downsample", (False, True, True))))
    return plain_geometry(power_of_two(levels - 1), temporal_stride, multiples(1), config["micro_frame_size"])


def _open_sora_card(checkpoint: Path, config: dict[str, Any]) -> Card:
    shift, scale = (weights.read_constants(checkpoint, (key,))[key] for key in ("shift", "scale"))
    return Card(
        class_name=OPEN_SORA_CLASS,
        sha256=weights.fingerprint(checkpoint),
        latent_channels=len(shift),
        has_moments=True,
        geometry=open_sora_geometry(config),
        shift=tuple(shift),
        # the checkpoint divides by its scale, a card multiplies
        scale=tuple(1 / s for s in scale),
    )


def _diffusers_card(checkpoint: Path, config: dict[str, Any]) -> Card:
    config = conventions.with_defaults(config)
    class_name = config["_class_name"]
    convention = conventions.TABLE.get(class_name)
    if convention is None:
        geometry, has_moments = _probe_class(checkpoint, class_name)
    else:
        geometry, has_moments = conventions.geometry(config), convention.has_moments(config)
    sigma_data = _sigma_data(checkpoint, class_name)
    constants = weights.read_constants(checkpoint, conventions.CONSTANTS, required=False)
    shift, scale = conventions.normalization(config, constants, sigma_data)
    if isinstance(shift[0], tuple):  # statistics per latent frame limit the number of frames
        largest = 1 + (len(shift[0]) - 1) * geometry.temporal_stride
        geometry = dataclasses.replace(geometry, frames=dataclasses.replace(geometry.frames, largest=largest))
    return Card(
        class_name=class_name,
        sha256=weights.fingerprint(checkpoint, extra=None if sigma_data is None else {"sigma_data": sigma_data}),
        latent_channels=conventions.latent_channels(config),
        has_moments=has_moments,
        geometry=geometry,
        shift=shift,
        scale=scale,
        lacks_logvar=convention is not None and convention.lacks_logvar,
        assumed=conventions.ASSUMED if convention is None else (),
    )


def _probe_class(checkpoint: Path, class_name: str) -> tuple[Geometry, bool]:
    """Return geometry and ``has_moments`` of a class that is not in the table. A subprocess encodes shapes only."""
    failed = (
        f"diffusers' {class_name} has no row in stvae/classes, and probing it failed; add a row, as stvae/README.md "
        "explains"
    )
    try:
        completed = subprocess.run(
            [sys.executable, "-m", "stvae.probe", str(checkpoint.absolute())],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    except subprocess.TimeoutExpired:
        raise UnknownVAE(f"{failed}: it took more than {PROBE_TIMEOUT_S:.0f} s") from None
    if completed.returncode != 0:
        last_line = (completed.stderr.strip().splitlines() or [f"exit {completed.returncode}"])[-1]
        raise UnknownVAE(f"{failed}: {last_line[:500]}")
    facts = json.loads(completed.stdout)
    frames = SizeRule(**facts["frames"])
    geometry = plain_geometry(facts["spatial_stride"], facts["temporal_stride"], frames, facts["chunk_frames"])
    return geometry, facts["has_moments"]


def _sigma_data(checkpoint: Path, class_name: str) -> float | None:
    """Return the scheduler's factor, from the pipeline folder around the VAE or as published; None for most classes."""
    published = conventions.SIGMA_DATA.get(class_name)
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if published is None or not scheduler.is_file():
        return published
    return float(read_json(scheduler).get("sigma_data", published))


def _as_tuples(values: Any) -> Any:
    return tuple(_as_tuples(value) for value in values) if isinstance(values, list) else values
