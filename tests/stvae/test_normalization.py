"""Our cards normalize latents as the pipeline of each model does between its transformer and its VAE."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from stvae import read_card
from stvae.normalization import denormalize, normalize
from tests.support import tiny_vaes

PIPELINES = {
    "AutoencoderKL": ("StableDiffusionImg2ImgPipeline", "decode_latents"),
    "AutoencoderTiny": ("StableDiffusionImg2ImgPipeline", "decode_latents"),
    "AutoencoderKLTemporalDecoder": ("StableVideoDiffusionPipeline", "decode_latents"),
    "AutoencoderDC": ("SanaPipeline", "__call__"),
    "AutoencoderKLFlux2": ("Flux2Pipeline", "__call__"),
    "AutoencoderKLMagvit": ("EasyAnimatePipeline", "__call__"),
    "AutoencoderKLCogVideoX": ("CogVideoXPipeline", "decode_latents"),
    "AutoencoderKLAllegro": ("AllegroPipeline", "decode_latents"),
    "AutoencoderKLHunyuanVideo": ("HunyuanVideoPipeline", "__call__"),
    "AutoencoderKLHunyuanVideo15": ("HunyuanVideo15Pipeline", "__call__"),
    "AutoencoderKLWan": ("WanPipeline", "__call__"),
    "AutoencoderKLWan 2.2": ("WanPipeline", "__call__"),
    "AutoencoderKLQwenImage": ("QwenImagePipeline", "__call__"),
    "AutoencoderKLLTXVideo": ("LTXPipeline", "__call__"),
    "AutoencoderKLLTX2Video": ("LTX2Pipeline", "__call__"),
    "AutoencoderKLMochi": ("MochiPipeline", "__call__"),
    "AutoencoderKLCosmos": ("CosmosTextToWorldPipeline", "__call__"),
    "AsymmetricAutoencoderKL": ("StableDiffusionInpaintPipeline", "__call__"),
    "AutoencoderKLHunyuanImage": ("HunyuanImagePipeline", "__call__"),
    "AutoencoderKLHunyuanImageRefiner": ("HunyuanImageRefinerPipeline", "__call__"),
    "AutoencoderKLQwenImage21": ("QwenImage21Pipeline", "__call__"),
    "AutoencoderKLQwenImage layered": ("QwenImagePipeline", "__call__"),
    "Kandinsky6SRVAE": ("Kandinsky6SRPipeline", "decode_latents"),
}
PICTURES = ("SanaPipeline", "Flux2Pipeline", "StableDiffusionImg2ImgPipeline")
WORDS = (
    "scaling_factor *",
    "/ self.vae_scaling",
    "/ self.vae.config.scaling",
    "latents_mean",
    "latents_std",
    "bn_",
    "_denormalize",
    "_unpatchify",
    "latents.permute",
)
"""Text in the lines of a pipeline that scale or rearrange latents."""
WITHOUT_PIPELINE = {"AutoencoderVidTok", "AutoencoderKLKVAE", "AutoencoderKLKVAEVideo", "AutoencoderKLMiniMaxH3"}
"""VAEs without a pipeline class. ``test_minimax_h3.py`` compares MiniMax-H3 with the steps of its modular pipeline."""


def test_every_vae_is_compared_with_its_pipeline() -> None:
    assert PIPELINES.keys() | WITHOUT_PIPELINE == tiny_vaes.CONFIGS.keys()


@pytest.mark.parametrize("name", PIPELINES)
def test_raw_latents_equal_those_that_the_models_own_pipeline_decodes(name: str, tmp_path: Path) -> None:
    model = tiny_vaes.make(name)
    model.save_pretrained(tmp_path)
    card = read_card(str(tmp_path))
    normalized = torch.randn(2, card.latent_channels, 1 if card.geometry.temporal_stride == 1 else 3, 4, 6)
    raw = denormalize(normalized, card)
    decoded = decoded_by_pipeline(*PIPELINES[name], model, normalized)
    if card.class_name == "AutoencoderKLFlux2":
        decoded = torch.nn.functional.pixel_unshuffle(decoded, 2)
    assert torch.allclose(decoded.reshape(raw.shape), raw, rtol=1e-5, atol=1e-6)
    assert torch.allclose(normalize(raw, card), normalized, rtol=1e-4, atol=1e-5)


def decoded_by_pipeline(pipeline: str, method: str, vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents that a pipeline passes to its VAE. Runs the lines of its source that scale latents."""
    methods = methods_of(pipeline)
    before, call = _path_to_decode(methods[method], [])
    if pipeline in PICTURES:
        latents = latents[:, :, 0]
    if pipeline == "CogVideoXPipeline":
        latents = latents.transpose(1, 2)
    names: dict[str, Any] = {"torch": torch, "latents": latents, "i": 0, "decode_chunk_size": 100}
    for name in ("_denormalize_latents", "_unpatchify_latents"):
        if name in methods:
            methods[name].decorator_list = []  # these methods are static
            exec(compile(ast.Module([methods[name]], []), pipeline, "exec"), names)  # noqa: S102
    names["self"] = SimpleNamespace(
        vae=vae,
        scheduler=SimpleNamespace(config=SimpleNamespace(sigma_data=0.5)),
        vae_scaling_factor_image=vae.config.get("scaling_factor"),
        _denormalize_latents=names.get("_denormalize_latents"),
        _unpatchify_latents=names.get("_unpatchify_latents"),
    )
    for statement in before:
        text = ast.unparse(statement)
        if any(word in text for word in WORDS) and "audio" not in text:
            exec(compile(ast.Module([statement], []), pipeline, "exec"), names)  # noqa: S102
    decoded: torch.Tensor = eval(compile(ast.Expression(call.args[0]), pipeline, "eval"), names)  # noqa: S307
    return decoded


def methods_of(pipeline: str) -> dict[str, ast.FunctionDef]:
    """Parse the methods of a pipeline class. Importing it would need the packages of its text encoder."""
    for path in Path(diffusers.__file__).parent.glob("pipelines/*/pipeline_*.py"):
        text = path.read_text()
        if f"\nclass {pipeline}(" in text:
            (owner,) = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == pipeline]
            return {n.name: n for n in owner.body if isinstance(n, ast.FunctionDef)}
    raise AssertionError(f"diffusers {diffusers.__version__} has no {pipeline}")


def _path_to_decode(node: ast.AST, before: list[ast.stmt]) -> tuple[list[ast.stmt], ast.Call]:
    """Find the last call of ``self.vae.decode`` and the assignments before it, outer ones first."""
    found = None
    for block in (getattr(node, name, None) or [] for name in ("body", "orelse")):
        for position, statement in enumerate(block):
            plain = [s for s in block[:position] if isinstance(s, (ast.Assign, ast.If))]
            if isinstance(statement, (ast.Assign, ast.Expr)):
                calls = [c for c in ast.walk(statement) if isinstance(c, ast.Call)]
                decodes = [c for c in calls if ast.unparse(c.func) == "self.vae.decode"]
                found = (before + plain, decodes[0]) if decodes else found
            else:
                found = _path_to_decode(statement, before + plain) or found
    return found  # type: ignore[return-value]
