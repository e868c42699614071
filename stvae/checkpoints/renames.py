"""Names of tensors in original layouts that diffusers converts with a script only, not in ``from_single_file``.

Sources: diffusers' scripts/convert_wan_to_diffusers.py, convert_hunyuan_video1_5_to_diffusers.py,
convert_cogvideox_to_diffusers.py, convert_ltx2_to_diffusers.py and convert_flux2_to_diffusers.py.
"""

from __future__ import annotations

import re

WAN_RESIDUAL = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2.": "conv1.",
    "residual.3.gamma": "norm2.gamma",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
"""Layers of a block of Wan."""
COGVIDEOX = {
    "block.": "resnets.",
    "down.": "down_blocks.",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "nin_shortcut": "conv_shortcut",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
}
HUNYUAN_VIDEO_15 = {
    ".down.": ".down_blocks.",
    ".up.": ".up_blocks.",
    ".block.": ".resnets.",
    ".downsample.": ".downsamplers.0.",
    ".upsample.": ".upsamplers.0.",
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.": ".mid_block.attentions.0.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
}
LTX_2_3 = {"decoder.up_blocks.7.": "decoder.up_blocks.3.upsamplers.0.", "decoder.up_blocks.8.": "decoder.up_blocks.3."}
"""Blocks of LTX-2.3's decoder that are beyond those of LTX-2."""
LTX_VIDEO_095 = {"last_time_embedder": "time_embedder", "last_scale_shift_table": "scale_shift_table"}
"""Names that LTX-Video has from 0.9.5 on, beyond those of LTX-2."""
FLUX_2 = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
COGVIDEOX_LEVELS = 4
"""Number of levels of CogVideoX's decoder, which diffusers counts from the other end."""


def replaced(name: str, parts: dict[str, str]) -> str:
    """Return a name in which each key of ``parts``, in order, is replaced by its value."""
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def wan_2_1_decoder(name: str, num_res_blocks: int) -> str:
    """Return diffusers' name of a tensor in the upsampling blocks of Wan 2.1; others stay as they are.

    The original counts all layers in one row: ``num_res_blocks + 1`` blocks of a level, then its upsampling. The conversion
    of diffusers takes this number as published.
    """
    found = re.fullmatch(r"decoder\.upsamples\.(\d+)\.((?:residual|shortcut|resample|time_conv)\..*)", name)
    if found is None:
        return name
    level, layer = divmod(int(found[1]), num_res_blocks + 2)
    part = f"resnets.{layer}" if layer <= num_res_blocks else "upsamplers.0"
    return f"decoder.up_blocks.{level}.{part}.{replaced(found[2], WAN_RESIDUAL)}"


def wan_2_2(name: str) -> str:
    """Return diffusers' name of a tensor in the down- and upsampling blocks of Wan 2.2; others stay as they are."""
    found = re.fullmatch(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.*)", name)
    if found is None:
        return name
    half, direction, block, layer, rest = found.groups()
    if rest.startswith(("resample.", "time_conv.")):
        return f"{half}.{direction}_blocks.{block}.{direction}sampler.{rest}"
    return f"{half}.{direction}_blocks.{block}.resnets.{layer}.{replaced(rest, WAN_RESIDUAL)}"


def hunyuan_video_15(name: str) -> str:
    """Return diffusers' name of a tensor of HunyuanVideo 1.5."""
    return replaced(name, HUNYUAN_VIDEO_15)


def cogvideox(name: str) -> str:
    """Return diffusers' name of a tensor of CogVideoX."""
    name = replaced(name, COGVIDEOX)
    found = re.fullmatch(r"decoder\.up\.(\d+)\.(.*)", name)
    if found is None:
        return name
    return f"decoder.up_blocks.{COGVIDEOX_LEVELS - 1 - int(found[1])}.{found[2]}"
