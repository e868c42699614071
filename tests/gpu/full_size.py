"""VAEs with random weights in the sizes that published models have, and small ones that stand for them on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stvae import conventions
from stvae.autoencoder import Autoencoder, build_untrained, mean_and_logvar
from stvae.card import OPEN_SORA_CLASS, Card, open_sora_geometry
from stvae.model import SpatioTemporalVAE
from stvae.spatial import SCALING_FACTOR
from stvae.vae import VAE, arrange_convolutions, build_open_sora

REFERENCE_FRAMES = 4
"""Number of frames that Open-Sora's own code encodes at once."""
PlainLoop = Callable[[Tensor], Tensor]
"""Takes uint8 clips (B, 3, T, H, W) in host memory to float32 moments in host memory."""


@dataclass(frozen=True)
class Model:
    """A VAE to measure."""

    class_name: str
    config: dict[str, Any]
    size: tuple[int, int, int]
    """Frames, height and width of a clip."""
    micro_batch: int = 1
    """Number of clips that the product encodes at once."""

    @property
    def is_open_sora(self) -> bool:
        """True for Open-Sora 1.2, which is not a class of diffusers."""
        return self.class_name == OPEN_SORA_CLASS

    @property
    def full_config(self) -> dict[str, Any]:
        """The configuration as ``config.json`` has it."""
        return {"_class_name": self.class_name} | self.config


FULL_SIZE = {
    # hpcai-tech/OpenSora-VAE-v1.2: the types stand for SDXL's 2D VAE and the sizes of VAE_Temporal_SD
    "Open-Sora 1.2": Model(
        OPEN_SORA_CLASS,
        {
            "vae_2d": {"type": "VideoAutoencoderKL"},
            "vae_temporal": {"type": "VAE_Temporal_SD"},
            "micro_frame_size": 17,
        },
        (51, 480, 848),
        micro_batch=2,
    ),
    # Wan-AI/Wan2.1-T2V-14B-Diffusers/vae
    "Wan 2.1": Model(
        "AutoencoderKLWan",
        {
            "base_dim": 96,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_scales": [],
            "temperal_downsample": [False, True, True],
        },
        (81, 480, 832),
    ),
    # Lightricks/LTX-Video/vae, the first version
    "LTX-Video": Model(
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 128,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": [4, 3, 3, 3, 4],
            "spatio_temporal_scaling": [True, True, True, False],
            "patch_size": 4,
            "patch_size_t": 1,
            "encoder_causal": True,
        },
        (121, 512, 768),
        micro_batch=2,
    ),
    # hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v/vae
    "HunyuanVideo 1.5": Model(
        "AutoencoderKLHunyuanVideo15",
        {
            "latent_channels": 32,
            "block_out_channels": [128, 256, 512, 1024, 1024],
            "layers_per_block": 2,
            "spatial_compression_ratio": 16,
            "temporal_compression_ratio": 4,
        },
        (121, 480, 848),
    ),
}
"""The published models by name, with the size of clips that each was made for."""

SMALL = {
    "Open-Sora 1.2": Model(
        OPEN_SORA_CLASS,
        {
            "vae_2d": {
                "config": {
                    "down_block_types": ["DownEncoderBlock2D"] * 4,
                    "up_block_types": ["UpDecoderBlock2D"] * 4,
                    "block_out_channels": [8, 8, 8, 8],
                    "norm_num_groups": 4,
                }
            },
            "vae_temporal": {
                "type": "VAE_Temporal",
                "filters": 8,
                "num_res_blocks": 1,
                "num_groups": 4,
                "temporal_downsample": [False, True, True],
            },
            "micro_frame_size": 17,
        },
        (17, 32, 48),
        micro_batch=2,
    ),
    "Wan 2.1": Model("AutoencoderKLWan", {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}, (9, 32, 48)),
    "LTX-Video": Model(
        "AutoencoderKLLTXVideo",
        {"block_out_channels": [8, 8, 8, 8], "layers_per_block": [1, 1, 1, 1, 1], "latent_channels": 8},
        (9, 64, 96),
        micro_batch=2,
    ),
    "HunyuanVideo 1.5": Model(
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": [16, 16, 16, 16, 16], "layers_per_block": 1, "latent_channels": 4},
        (9, 32, 48),
    ),
}
"""Small models of the same classes, for a CPU."""


def build(model: Model, device: str, dtype: str) -> tuple[VAE, PlainLoop]:
    """Make a VAE with random weights as ``load_vae`` makes it, without its decoder, and the plain loop of its own code.

    The loop has its own copy of the weights, in torch's usual memory layout.
    """
    torch.manual_seed(0)
    with torch.device(device):
        network: Any = build_open_sora(model.config) if model.is_open_sora else build_untrained(model.full_config)
    if model.is_open_sora:
        network.spatial_vae.module.decoder = network.temporal_vae.decoder = None
    else:
        network.decoder = nn.Identity()
    network = network.to(getattr(torch, dtype)).eval().requires_grad_(False)
    plain = copy.deepcopy(network)
    config = model.config if model.is_open_sora else conventions.with_defaults(dict(network.config))
    card = _card(model, config)
    ours = network if model.is_open_sora else Autoencoder(network, card, config)
    arrange_convolutions(ours)
    return VAE(card, ours), _open_sora_loop(plain, device) if model.is_open_sora else _diffusers_loop(plain, device)


def _card(model: Model, config: dict[str, Any]) -> Card:
    """A card whose hash, shift and scale mean nothing; encoding does not use them."""
    channels = 4 if model.is_open_sora else conventions.latent_channels(config)
    return Card(
        class_name=model.class_name,
        sha256="random",
        latent_channels=channels,
        has_moments=True,
        geometry=open_sora_geometry(config) if model.is_open_sora else conventions.geometry(config),
        shift=(0.0,) * channels,
        scale=(1.0,) * channels,
    )


def _diffusers_loop(network: Any, device: str) -> PlainLoop:
    """Call diffusers' ``encode`` with one clip at a time."""

    @torch.inference_mode()
    def loop(pixels_BCTHW: Tensor) -> Tensor:
        moments = []
        for clip in pixels_BCTHW.split(1):
            x_BCTHW = (clip.to(device).float() / 127.5 - 1).to(network.dtype)
            moments.append(torch.cat(mean_and_logvar(network.encode(x_BCTHW)), dim=1).float().cpu())  # type: ignore[arg-type]
        return torch.cat(moments)

    return loop


def _open_sora_loop(network: SpatioTemporalVAE, device: str) -> PlainLoop:
    """Encode four frames and one chunk at a time, as Open-Sora's own code does."""
    spatial, temporal = network.spatial_vae.module, network.temporal_vae

    @torch.inference_mode()
    def loop(pixels_BCTHW: Tensor) -> Tensor:
        moments = []
        for clip in pixels_BCTHW.split(1):
            x_BCTHW = (clip.to(device).float() / 127.5 - 1).to(spatial.dtype)
            frames = x_BCTHW[0].transpose(0, 1).split(REFERENCE_FRAMES)
            latents = torch.cat([spatial.encode(part).latent_dist.mean * SCALING_FACTOR for part in frames])
            chunks = latents.transpose(0, 1)[None].split(network.chunk_frames, dim=2)
            moments.append(torch.cat([temporal.encode(chunk) for chunk in chunks], dim=2).float().cpu())
        return torch.cat(moments)

    return loop
