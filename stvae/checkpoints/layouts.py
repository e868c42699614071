"""Original layouts of VAEs: how to know one by the names of its tensors, and its conversion to the layout of diffusers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stvae.checkpoints import renames

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
Config = Mapping[str, Any]
PREFIXES = ("vae.", "first_stage_model.", "")
"""Beginnings of the VAE's names in a file with a whole model; none in a file with the VAE alone."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The way in which a family of models names its tensors."""

    title: str
    marks: tuple[str, ...]
    """Names without the prefix that a file in this layout has."""
    classes: tuple[str, ...]
    """Classes of diffusers that may be stored in this layout."""
    convert: Callable[[Tensors, str, Config], Tensors]
    """Returns the tensors under diffusers' names, given the class and its configuration."""


def find_layout(names: Collection[str]) -> tuple[Layout, str] | None:
    """Return the layout of a file and the prefix of its names, or None if it is in no layout that we know."""
    for prefix in PREFIXES:
        for layout in LAYOUTS:
            if all(prefix + mark in names for mark in layout.marks):
                return layout, prefix
    return None


def _single_file_conversion(class_name: str) -> Callable[..., Tensors]:
    """Return the conversion that diffusers' ``from_single_file`` uses for a class."""
    table = import_diffusers("diffusers.loaders.single_file_model").SINGLE_FILE_LOADABLE_CLASSES
    convert: Callable[..., Tensors] = table[class_name]["checkpoint_mapping_fn"]
    return convert


def import_diffusers(module: str = "diffusers") -> Any:
    """Import a module of diffusers. A training image lacks it, and converts no checkpoint."""
    return importlib.import_module(module)


def _wan(tensors: Tensors, class_name: str, config: Config) -> Tensors:
    num_res_blocks = int(config.get("num_res_blocks", 2))
    tensors = {renames.wan_2_1_decoder(renames.wan_2_2(name), num_res_blocks): tensors[name] for name in tensors}
    return _single_file_conversion("AutoencoderKLWan")(checkpoint=tensors, config=config)


def _ltx(tensors: Tensors, class_name: str, config: Config) -> Tensors:
    prefixed = {f"vae.{name}": tensor for name, tensor in tensors.items()}
    if class_name == "AutoencoderKLLTXVideo" and "LTXVideo095DownBlock3D" not in config.get("down_block_types", ()):
        return _single_file_conversion(class_name)(checkpoint=prefixed, config=config)
    # diffusers knows LTX-Video 0.9.5 by its width alone; its names are those of LTX-2 and a few more
    converted = _single_file_conversion("AutoencoderKLLTX2Video")(checkpoint=prefixed, config=config)
    parts = renames.LTX_2_3 | renames.LTX_VIDEO_095
    return {renames.replaced(name, parts): tensor for name, tensor in converted.items()}


def _latent_diffusion(tensors: Tensors, class_name: str, config: Config) -> Tensors:
    tensors = {renames.replaced(name, renames.FLUX_2): tensor for name, tensor in tensors.items()}
    levels = len(config["block_out_channels"])
    config = {"down_block_types": range(levels), "up_block_types": range(levels), **config}
    converted = _single_file_conversion("AutoencoderKL")(checkpoint=tensors, config=config)
    return converted | {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}


def _deep_compression(tensors: Tensors, class_name: str, config: Config) -> Tensors:
    return _single_file_conversion("AutoencoderDC")(checkpoint=tensors, config=config)


def _renamed(rename: Callable[[str], str], dropped: str = "(?!)") -> Callable[[Tensors, str, Config], Tensors]:
    """Return a conversion that renames each tensor. ``dropped`` is the pattern of names that only training needs."""

    def convert(tensors: Tensors, class_name: str, config: Config) -> Tensors:
        return {rename(name): tensor for name, tensor in tensors.items() if not re.match(dropped, name)}

    return convert


LAYOUTS = (
    Layout(
        title="Wan 2.1 and 2.2",
        marks=("encoder.middle.0.residual.0.gamma", "decoder.middle.0.residual.0.gamma", "conv1.weight"),
        classes=("AutoencoderKLWan", "AutoencoderKLQwenImage"),
        convert=_wan,
    ),
    Layout(
        title="LTX-Video and LTX-2",
        marks=("per_channel_statistics.mean-of-means", "encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
        classes=("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"),
        convert=_ltx,
    ),
    Layout(
        title="HunyuanVideo 1.5",
        marks=("encoder.down.0.block.0.norm1.gamma", "decoder.up.0.block.0.norm1.gamma"),
        classes=("AutoencoderKLHunyuanVideo15",),
        convert=_renamed(renames.hunyuan_video_15),
    ),
    Layout(
        title="CogVideoX",
        marks=("encoder.down.0.block.0.conv1.conv.weight", "decoder.mid.block_1.norm1.conv_y.conv.weight"),
        classes=("AutoencoderKLCogVideoX",),
        convert=_renamed(renames.cogvideox, dropped="loss"),
    ),
    Layout(
        title="Flux 2",
        marks=("encoder.down.0.block.0.norm1.weight", "encoder.conv_in.weight", "bn.running_mean"),
        classes=("AutoencoderKLFlux2",),
        convert=_latent_diffusion,
    ),
    Layout(
        title="SD, SDXL, SD 3 and Flux",
        marks=("encoder.down.0.block.0.norm1.weight", "encoder.conv_in.weight", "decoder.conv_in.weight"),
        classes=("AutoencoderKL",),
        convert=_latent_diffusion,
    ),
    Layout(
        title="DC-AE and Sana",
        marks=("encoder.project_out.0.conv.weight", "decoder.project_in.conv.weight"),
        classes=("AutoencoderDC",),
        convert=_deep_compression,
    ),
    # its original code has diffusers' names
    Layout(
        title="HunyuanVideo",
        marks=(
            "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
            "encoder.mid_block.attentions.0.to_q.weight",
            "quant_conv.weight",
        ),
        classes=("AutoencoderKLHunyuanVideo",),
        convert=_renamed(str),
    ),
)
