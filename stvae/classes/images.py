"""Rows of the classes that encode pictures one by one. Imports no torch.

Sources: diffusers 0.42, models/autoencoders/*.py.
"""

from __future__ import annotations

from stvae.classes import wan
from stvae.classes.convention import Config, Convention, number_at, stride_of_levels


def _kvae_has_moments(config: Config) -> bool:
    if not config["double_z"]:
        raise ValueError("double_z is false, and then the class takes half of the latent for its log-variance")
    return True


IMAGES: dict[str, Convention] = {
    "AutoencoderKL": Convention(
        spatial_stride=stride_of_levels("block_out_channels"), takes_images=True, defaults={"scaling_factor": 0.18215}
    ),
    "AutoencoderKLTemporalDecoder": Convention(
        spatial_stride=stride_of_levels("block_out_channels"),
        takes_images=True,
        decodes_whole_clips=True,
        defaults={"scaling_factor": 0.18215},
    ),
    "AutoencoderTiny": Convention(
        spatial_stride=stride_of_levels("encoder_block_out_channels"),
        takes_images=True,
        has_moments=lambda config: False,
    ),
    "AutoencoderDC": Convention(
        spatial_stride=stride_of_levels("encoder_block_out_channels"),
        takes_images=True,
        has_moments=lambda config: False,
    ),
    # its transformer takes 2x2 cells as one, normalized with the statistics of a batch norm
    "AutoencoderKLFlux2": Convention(
        spatial_stride=stride_of_levels("block_out_channels"),
        takes_images=True,
        patch=2,
        defaults={"batch_norm_eps": 1e-4},
    ),
    "AsymmetricAutoencoderKL": Convention(
        spatial_stride=stride_of_levels("down_block_out_channels"),
        takes_images=True,
        defaults={"scaling_factor": 0.18215, "latent_channels": 4},
    ),
    "AutoencoderKLHunyuanImage": Convention(
        spatial_stride=number_at("spatial_compression_ratio"), takes_images=True, tiling="never"
    ),
    # its transformer takes every latent frame twice, as 64 channels
    "AutoencoderKLHunyuanImageRefiner": Convention(
        spatial_stride=number_at("spatial_compression_ratio"),
        takes_images=True,
        pictures_have_time=True,
        tiling="never",
        defaults={"scaling_factor": 1.03682, "spatial_compression_ratio": 16, "latent_channels": 32},
    ),
    "AutoencoderKLKVAE": Convention(
        spatial_stride=stride_of_levels("ch_mult"),
        takes_images=True,
        has_moments=_kvae_has_moments,
        defaults={"ch_mult": [1, 2, 4, 8], "double_z": True, "z_channels": 16},
    ),
    "AutoencoderKLQwenImage21": Convention(
        spatial_stride=wan.spatial_stride,
        takes_images=True,
        pictures_have_time=True,
        adds_alpha=lambda config: config["in_channels"] == 4 * (config.get("patch_size") or 1) ** 2,
        needs_statistics=True,
        defaults={
            "in_channels": 4,
            "z_dim": 64,
            "temperal_downsample": [False, True, True, True],
            "dim_mult": [1, 2, 4, 8, 8],
        },
    ),
}
