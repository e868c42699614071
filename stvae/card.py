"""A codec's facts without tensors: identity, geometry and normalisation. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvae import weights
from stvae.geometry import Geometry

OPEN_SORA_CLASS = "VideoAutoencoderPipeline"
"""``model_type`` of Open-Sora 1.2's published VAE."""


class UnknownCodec(ValueError):
    """A checkpoint folder of a class that this project does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the planner, the metadata and the loader need to know of a codec.

    Normalised latents are ``(raw - shift) * scale`` per channel, with every factor of the model folded in.
    """

    class_name: str
    sha256: str
    """Of the configuration and the weights."""
    latent_channels: int
    kind: str
    """``moments`` (mean then log-variance) or ``mean``."""
    geometry: Geometry
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``dataset.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Card:
        """The card that ``to_json`` wrote."""
        lists = {key: tuple(values[key]) for key in ("shift", "scale")}
        return cls(**(values | lists | {"geometry": Geometry(**values["geometry"])}))


def read_card(codec: str) -> Card:
    """The card of a codec given by name, path or URL; reads its configuration and hashes its weights."""
    folder = weights.find_folder(codec)
    config = weights.read_config(folder)
    if config.get("model_type") != OPEN_SORA_CLASS:
        raise UnknownCodec(
            f"the codec at '{codec}' is a {config.get('_class_name') or config.get('model_type')}; known: {OPEN_SORA_CLASS}"
        )
    return _open_sora_card(folder, config)


def temporal_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the temporal VAE that an Open-Sora configuration spells out; those left out have their published values.

    UnknownCodec for a type whose sizes are neither spelled out nor published.
    """
    given = dict(config["vae_temporal"])
    kind = given.pop("type")
    given.pop("from_pretrained", None)
    if kind != "VAE_Temporal_SD" and "temporal_downsample" not in given:
        raise UnknownCodec(f"vae_temporal of type '{kind}' does not say its sizes; known without: VAE_Temporal_SD")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def open_sora_geometry(config: dict[str, Any]) -> Geometry:
    """Geometry of an Open-Sora configuration. Levels and strides left out are the published ones."""
    levels = len(config["vae_2d"].get("config", {}).get("block_out_channels", [128, 256, 512, 512]))
    return Geometry(
        spatial_stride=2 ** (levels - 1),
        temporal_stride=2 ** sum(temporal_sizes(config).get("temporal_downsample", (False, True, True))),
        chunk_frames=config["micro_frame_size"],
    )


def _open_sora_card(folder: Path, config: dict[str, Any]) -> Card:
    shift, scale = (weights.constant(folder, key) for key in ("shift", "scale"))
    return Card(
        class_name=OPEN_SORA_CLASS,
        sha256=weights.fingerprint(folder),
        latent_channels=len(shift),
        kind="moments",
        geometry=open_sora_geometry(config),
        shift=tuple(shift),
        # the checkpoint divides by its scale; ours multiplies
        scale=tuple(1 / s for s in scale),
    )
