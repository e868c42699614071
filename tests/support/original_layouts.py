"""Tiny checkpoints in the layouts in which models were published, with random weights.

Each function gives diffusers' tensors the names of the model's original code, so that a test can compare both forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def substituted(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Apply regular expressions to each name, in order."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    assert len(renamed) == len(tensors)
    return renamed


def numbered(name: str, half: str, direction: str, order: list[str]) -> str:
    """Number the blocks of a half of LTX by their place in ``order``: ``encoder.down_blocks.4.`` for the fifth."""
    for index in sorted(range(len(order)), key=lambda number: -len(order[number])):
        start = f"{half}.{'' if order[index] == 'mid_block' else f'{direction}_blocks.'}{order[index]}."
        if name.startswith(start):
            return f"{half}.{direction}_blocks.{index}.{name.removeprefix(start)}"
    return name


WAN_BLOCK = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"conv_shortcut", "shortcut"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"coder\.norm_out", "coder.head.0"),
    (r"coder\.conv_out", "coder.head.2"),
    (r"coder\.conv_in", "coder.conv1"),
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
)


def wan_2_1(tensors: Tensors) -> Tensors:
    def flat(found: re.Match[str]) -> str:
        block, kind, layer = found.groups()
        return f"decoder.upsamples.{4 * int(block) + (int(layer) if kind == 'resnets' else 3)}"

    names = {re.sub(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)", flat, name): name for name in tensors}
    flat_tensors = {new: tensors[name] for new, name in names.items()}
    return substituted(flat_tensors, *WAN_BLOCK, (r"encoder\.down_blocks", "encoder.downsamples"))


def wan_2_2(tensors: Tensors) -> Tensors:
    last = {
        (half, block): 1
        + max(int(n) for n in re.findall(rf"{half}.{way}_blocks.{block}.resnets.(\d+)", " ".join(tensors)))
        for half, way in (("encoder", "down"), ("decoder", "up"))
        for block in range(4)
    }
    renamed = {}
    for name, tensor in tensors.items():
        found = re.match(
            r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(resnets\.(\d)|downsampler|upsampler)\.(.*)", name
        )
        if found:
            half, way, block, _, layer, rest = found.groups()
            layer = layer or str(last[half, int(block)])
            name = f"{half}.{way}samples.{block}.{way}samples.{layer}.{rest}"
        renamed[name] = tensor
    return substituted(renamed, *WAN_BLOCK)


def ltx(encoder: str, decoder: str) -> Callable[[Tensors], Tensors]:
    """Return the renaming for the order of blocks of a version of LTX."""

    def rename(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            name = numbered(numbered(name, "encoder", "down", encoder.split()), "decoder", "up", decoder.split())
            renamed[name] = tensor
        original = substituted(
            renamed,
            (r"resnets", "res_blocks"),
            (r"conv_shortcut\.conv", "conv_shortcut"),
            (r"norm3", "norm3.norm"),
            (r"^decoder\.time_embedder", "decoder.last_time_embedder"),
            (r"^decoder\.scale_shift_table", "decoder.last_scale_shift_table"),
            (r"^latents_mean", "per_channel_statistics.mean-of-means"),
            (r"^latents_std", "per_channel_statistics.std-of-means"),
        )
        unused = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
        return original | {f"per_channel_statistics.{name}": torch.zeros(3) for name in unused}

    return rename


LTX_DOWN_0 = "0 0.downsamplers.0 0.conv_out 1 1.downsamplers.0 1.conv_out 2 2.downsamplers.0 3 mid_block"
LTX_UP_0 = "mid_block 0 1.upsamplers.0 1 2.conv_in 2.upsamplers.0 2 3.conv_in 3.upsamplers.0 3"
LTX_DOWN = "0 0.downsamplers.0 1 1.downsamplers.0 2 2.downsamplers.0 3 3.downsamplers.0 mid_block"
LTX_UP = "mid_block 0.upsamplers.0 0 1.upsamplers.0 1 2.upsamplers.0 2 3.upsamplers.0 3"

LEVELS = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.(\d)", r"down.\1"),
    (r"\.resnets\.", ".block."),
    (r"downsamplers\.0", "downsample"),
    (r"upsamplers\.0", "upsample"),
)


def reversed_up_blocks(tensors: Tensors) -> Tensors:
    """Count the levels of the decoder from its end."""
    return {
        re.sub(r"decoder\.up_blocks\.(\d)", lambda found: f"decoder.up.{3 - int(found[1])}", name): tensor
        for name, tensor in tensors.items()
    }


def latent_diffusion(tensors: Tensors) -> Tensors:
    tensors = {
        name: tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor
        for name, tensor in reversed_up_blocks(tensors).items()
    }
    attention = ((r"group_norm", "norm"), (r"\.to_([qkv])\.", r".\1."), (r"to_out\.0", "proj_out"))
    return substituted(tensors, *LEVELS, *attention, (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"))


def flux_2(tensors: Tensors) -> Tensors:
    pairs = ((r"^quant_conv", "encoder.quant_conv"), (r"^post_quant_conv", "decoder.post_quant_conv"))
    return substituted(latent_diffusion(tensors), *pairs)


def hunyuan_video_15(tensors: Tensors) -> Tensors:
    return substituted(tensors, *LEVELS, (r"up_blocks\.(\d)", r"up.\1"), (r"\.to_([qkv])\.", r".\1."))


def cogvideox(tensors: Tensors) -> Tensors:
    renamed = substituted(reversed_up_blocks(tensors), *LEVELS, (r"conv_shortcut", "nin_shortcut"))
    return renamed | {"loss.logvar": torch.zeros(1)}


def deep_compression(tensors: Tensors) -> Tensors:
    """Sana's names. The attention's q, k and v are one tensor."""
    joined: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.to_q.weight"):
            parts = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            joined[name.replace("to_q", "qkv.conv")] = torch.cat(parts)[:, :, None, None]
        elif name.endswith("attn.to_out.weight"):
            joined[name.replace("to_out", "proj.conv")] = tensor[:, :, None, None]
        elif not re.search(r"attn\.to_[kv]\.", name):
            joined[name] = tensor
    return substituted(
        joined,
        (r"to_qkv_multiscale\.0\.proj_in", "aggreg.0.0"),
        (r"to_qkv_multiscale\.0\.proj_out", "aggreg.0.1"),
        (r"attn\.norm_out", "attn.proj.norm"),
        (r"conv_out\.conv_depth", "conv_out.depth_conv.conv"),
        (r"conv_out\.conv_inverted", "conv_out.inverted_conv.conv"),
        (r"conv_out\.conv_point", "conv_out.point_conv.conv"),
        (r"conv_out\.norm", "conv_out.point_conv.norm"),
        (r"\.attn\.", ".context_module.main."),
        (r"(blocks\.\d\.\d)\.conv_out\.", r"\1.local_module.main."),
        (r"(blocks\.\d\.\d)\.conv(\d)\.", r"\1.main.conv\2.conv."),
        (r"(blocks\.\d\.\d)\.norm\.", r"\1.main.conv2.norm."),
        (r"(blocks\.\d\.\d)\.conv\.", r"\1.main.conv.conv."),
        (r"encoder\.down_blocks\.(\d)\.", r"encoder.stages.\1.op_list."),
        (r"decoder\.up_blocks\.(\d)\.", r"decoder.stages.\1.op_list."),
        (r"encoder\.conv_in\.conv\.", "encoder.project_in.main.conv."),
        (r"encoder\.conv_in\.", "encoder.project_in.conv."),
        (r"encoder\.conv_out", "encoder.project_out.0.conv"),
        (r"decoder\.conv_in", "decoder.project_in.conv"),
        (r"decoder\.norm_out", "decoder.project_out.0"),
        (r"decoder\.conv_out\.conv\.", "decoder.project_out.2.main.conv."),
        (r"decoder\.conv_out\.", "decoder.project_out.2.conv."),
    )


IMAGE_BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
LTX_SIZES = {"latent_channels": 8, "block_out_channels": [8, 16, 16, 16], "layers_per_block": [1] * 5}
LTX_095 = {
    "latent_channels": 8,
    "block_out_channels": [8, 16, 16, 32, 32],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [1, 2, 1, 1, 1],
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [16, 32, 64],
    "decoder_layers_per_block": [1] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX_2 = {
    "latent_channels": 8,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": [1, 2, 1, 1, 1],
    "decoder_block_out_channels": [16, 32, 64],
    "decoder_layers_per_block": [1, 1, 2, 1],
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX_2_3 = LTX_2 | {
    "decoder_block_out_channels": [16, 16, 16, 32],
    "decoder_layers_per_block": [1] * 5,
    "decoder_spatio_temporal_scaling": [True] * 4,
    "decoder_inject_noise": [False] * 5,
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
    "upsample_residual": [False] * 4,
    "upsample_factor": [2, 1, 1, 2],
}

LAYOUTS: dict[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors]]] = {
    # name: (class, tiny configuration, renaming)
    "wan 2.1": ("AutoencoderKLWan", {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 2, 2]}, wan_2_1),
    "qwen image": ("AutoencoderKLQwenImage", {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 2, 2]}, wan_2_1),
    "wan 2.2": (
        "AutoencoderKLWan",
        {
            "base_dim": 4,
            "decoder_base_dim": 8,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": [0.01 * c for c in range(48)],
            "latents_std": [1 + 0.1 * c for c in range(48)],
        },
        wan_2_2,
    ),
    "ltx 0.9.0": (
        "AutoencoderKLLTXVideo",
        LTX_SIZES | {"decoder_block_out_channels": [8, 16, 16, 16], "decoder_layers_per_block": [1] * 5},
        ltx(LTX_DOWN_0, LTX_UP_0),
    ),
    "ltx 0.9.1": (
        "AutoencoderKLLTXVideo",
        LTX_SIZES
        | {
            "decoder_block_out_channels": [8, 16, 32],
            "decoder_layers_per_block": [1, 1, 1, 1],
            "decoder_spatio_temporal_scaling": [True] * 3,
            "decoder_inject_noise": [True, True, True, False],
            "upsample_residual": [True] * 3,
            "upsample_factor": [2, 2, 2],
            "timestep_conditioning": True,
        },
        ltx(LTX_DOWN_0, LTX_UP),
    ),
    "ltx 0.9.5": ("AutoencoderKLLTXVideo", LTX_095, ltx(LTX_DOWN, LTX_UP)),
    "ltx-2": ("AutoencoderKLLTX2Video", LTX_2, ltx(LTX_DOWN, LTX_UP)),
    "ltx-2.3": ("AutoencoderKLLTX2Video", LTX_2_3, ltx(LTX_DOWN, LTX_UP)),
    "hunyuan video": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": [8] * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        dict,
    ),
    "hunyuan video 1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": [16] * 5, "latent_channels": 4, "layers_per_block": 1},
        hunyuan_video_15,
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": [8, 8, 8, 16], "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        cogvideox,
    ),
    "sdxl": (
        "AutoencoderKL",
        IMAGE_BLOCKS | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "scaling_factor": 0.13025},
        latent_diffusion,
    ),
    "flux": (
        "AutoencoderKL",
        IMAGE_BLOCKS
        | {
            "block_out_channels": [8, 16, 16, 16],
            "norm_num_groups": 4,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        }
        | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        latent_diffusion,
    ),
    "flux 2": (
        "AutoencoderKLFlux2",
        {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "latent_channels": 8, "layers_per_block": 1},
        flux_2,
    ),
    "sana": (
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "encoder_layers_per_block": [1, 1],
            "decoder_layers_per_block": [1, 1],
            "encoder_qkv_multiscales": [[], [5]],
            "decoder_qkv_multiscales": [[], [5]],
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": 0.41407,
        },
        deep_compression,
    ),
}


def make(name: str) -> tuple[Any, Tensors]:
    """Build a diffusers model with random weights and statistics, and its tensors in the original layout."""
    class_name, config, rename = LAYOUTS[name]
    torch.manual_seed(0)
    model = getattr(diffusers, class_name)(**config).eval()
    for key, buffer in model.named_buffers():
        if key in ("latents_mean", "bn.running_mean"):
            buffer.copy_(torch.randn(buffer.shape))
        if key in ("latents_std", "bn.running_var"):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model, rename(dict(model.state_dict()))


def with_prefix(tensors: Tensors, prefix: str, others: Iterable[str] = ()) -> Tensors:
    """Put the VAE into a whole model: give its names a prefix, and add other tensors."""
    whole = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    return whole | {name: torch.zeros(2, 2) for name in others}
