"""The configuration that Lightricks writes into the metadata of a file, in the terms of diffusers.

It lists the blocks of encoder and decoder by name. Source: ``ltx_core/model/video_vae/video_vae.py`` of LTX-2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stvae.checkpoints.files import WeightsError, describe, parse_json

DOWNSAMPLE_TYPES = {
    "compress_space_res": "spatial",
    "compress_time_res": "temporal",
    "compress_all_res": "spatiotemporal",
}
UPSAMPLE_TYPES = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}
BASE_CHANNELS = 128
MAX_BLOCKS, MAX_CHANNELS = 64, 1 << 16


def config_in_metadata(metadata: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return the VAE's configuration in the metadata of a file; None if there is none that diffusers can build.

    WeightsError if the metadata are damaged.
    """
    text = metadata.get("config")
    if not isinstance(text, str):
        return None
    config = parse_json(text.encode(), f"the configuration in the metadata of '{path}'")
    vae = config.get("vae", config)
    if not isinstance(vae, dict) or not {"encoder_blocks", "decoder_blocks"} <= vae.keys():
        return None
    try:
        return _translate(vae, is_ltx_2="audio_vae" in config or not vae.get("timestep_conditioning"))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"the configuration in the metadata of '{path}' cannot be used: {describe(error)}") from None


def _translate(vae: dict[str, Any], *, is_ltx_2: bool) -> dict[str, Any] | None:
    """Return diffusers' configuration of blocks that alternate between ResNets and resampling, else None."""
    encoder, decoder = (_blocks(vae[f"{half}_blocks"]) for half in ("encoder", "decoder"))
    down, up = encoder[1::2], decoder[1::2]
    resnets = encoder[::2] + decoder[::2]
    fits = [name in DOWNSAMPLE_TYPES for name, _ in down] + [name in UPSAMPLE_TYPES for name, _ in up]
    if not all(fits) or any(name != "res_x" for name, _ in resnets) or len(encoder) % 2 == 0 or len(decoder) % 2 == 0:
        return None
    latent_channels = int(vae.get("latent_channels", BASE_CHANNELS))
    base = latent_channels if is_ltx_2 else BASE_CHANNELS
    first_widths = [int(vae.get(f"{half}_base_channels") or base) for half in ("encoder", "decoder")]
    widths = _products(first_widths[0], [params.get("multiplier", 2) for _, params in down])
    factors = [int(params.get("multiplier", 1)) for _, params in up]
    upsample_types = [UPSAMPLE_TYPES[name] for name, _ in up]
    config = {
        "_class_name": "AutoencoderKLLTX2Video" if is_ltx_2 else "AutoencoderKLLTXVideo",
        "latent_channels": latent_channels,
        "patch_size": int(vae.get("patch_size", 4)),
        "patch_size_t": 1,
        "block_out_channels": widths[1:] if is_ltx_2 else widths,
        "down_block_types": ["LTX2VideoDownBlock3D" if is_ltx_2 else "LTXVideo095DownBlock3D"] * len(down),
        "downsample_type": [DOWNSAMPLE_TYPES[name] for name, _ in down],
        "spatio_temporal_scaling": [True] * len(down),
        "layers_per_block": [int(params["num_layers"]) for _, params in encoder[::2]],
        "decoder_block_out_channels": _products(first_widths[1], factors)[1:],
        "decoder_layers_per_block": [int(params["num_layers"]) for _, params in decoder[::2]],
        "decoder_spatio_temporal_scaling": [True] * len(up),
        "decoder_inject_noise": [bool(params.get("inject_noise", False)) for _, params in decoder[::2]],
        "upsample_residual": [bool(params.get("residual", False)) for _, params in up],
        "upsample_factor": factors,
        "timestep_conditioning": bool(vae.get("timestep_conditioning", False)),
        "encoder_causal": True,
        "decoder_causal": bool(vae.get("causal_decoder", False)),
        "scaling_factor": float(vae.get("scaling_factor", 1.0)),
    }
    if not is_ltx_2:
        return config
    return config | {
        "upsample_type": upsample_types,
        "encoder_spatial_padding_mode": str(vae.get("encoder_spatial_padding_mode", "zeros")),
        "decoder_spatial_padding_mode": str(vae.get("decoder_spatial_padding_mode", "reflect")),
    }


def _blocks(values: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and settings of each block. A whole number instead of settings is the number of layers."""
    if len(values) > MAX_BLOCKS:
        raise ValueError(f"it has {len(values)} blocks; expected at most {MAX_BLOCKS}")
    return [(str(name), {"num_layers": params} if isinstance(params, int) else dict(params)) for name, params in values]


def _products(first: int, factors: list[int]) -> list[int]:
    """Return the number of channels before the first block and after each one."""
    widths = [first]
    for factor in factors:
        widths.append(widths[-1] * int(factor))
        if not 0 < widths[-1] <= MAX_CHANNELS:
            raise ValueError(f"a block has {str(widths[-1])[:20]} channels; expected 1 to {MAX_CHANNELS}")
    return widths
