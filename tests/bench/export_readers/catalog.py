"""The trainers whose own classes read our exports, and how to get their code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One dataset class of a trainer."""

    title: str
    """The class, as the table shows it."""
    folder: str
    """Folder with the trainer's code below ``--readers``."""
    origin: str
    """Where the code comes from: an address for git, or a requirement for pip."""
    package_root: str = "."
    """Folder below ``folder`` that goes onto Python's path."""
    skipped: tuple[str, ...] = ()
    """Packages whose ``__init__.py`` is not run, because it imports the trainer's models."""
    stubs: tuple[str, ...] = ()
    """Packages that are imported on the way to the class, which does not use them. They get stand-ins if not installed."""
    target: str
    """Value of ``--to``."""
    model: str
    """The family of the set, a key of ``sets.MAKERS``."""
    one_size: bool = False
    """True if the reader takes clips of one size only, so that the export gets a filter."""
    left_out: str = ""
    """What of the reader is not tried, and why."""


FASTVIDEO = "fastvideo==0.2.1"
READERS = {
    "ltx": Reader(
        title="LTX-2 trainer, PrecomputedDataset",
        folder="LTX-2",
        origin="https://github.com/Lightricks/LTX-2",
        package_root="packages/ltx-trainer/src",
        target="ltx",
        model="ltx-2.3",
        left_out="audio and reference latents: an output has none",
    ),
    "ltx-19b": Reader(
        title="LTX-2 trainer, PrecomputedDataset, text of LTX-2 19B",
        folder="LTX-2",
        origin="https://github.com/Lightricks/LTX-2",
        package_root="packages/ltx-trainer/src",
        target="ltx",
        model="ltx-2",
        left_out="audio and reference latents: an output has none",
    ),
    "fastvideo-ltx2": Reader(
        title="FastVideo, LTX2PrecomputedDataset",
        folder="fastvideo",
        origin=FASTVIDEO,
        skipped=("fastvideo", "fastvideo.dataset"),
        stubs=("torchvision",),
        target="ltx",
        model="ltx-2-connected",
        left_out="audio latents: an output has none",
    ),
    "fastvideo-map": Reader(
        title="FastVideo, LatentsParquetMapStyleDataset",
        folder="fastvideo",
        origin=FASTVIDEO,
        skipped=("fastvideo", "fastvideo.dataset"),
        stubs=("torchvision",),
        target="fastvideo",
        model="wan",
        one_size=True,
        left_out="the image-to-video schema: its condition is not in an output",
    ),
    "fastvideo-iterable": Reader(
        title="FastVideo, LatentsParquetIterStyleDataset",
        folder="fastvideo",
        origin=FASTVIDEO,
        skipped=("fastvideo", "fastvideo.dataset"),
        stubs=("torchvision",),
        target="fastvideo",
        model="wan",
        one_size=True,
        left_out="ids and sizes: this class does not give them",
    ),
    "automodel": Reader(
        title="NeMo Automodel, TextToVideoDataset with its sampler and collation",
        folder="nemo_automodel",
        origin="nemo_automodel==0.7.0",
        target="automodel",
        model="wan",
        left_out="image embeddings: an output has none",
    ),
    "fastgen": Reader(
        title="FastGen, WDSLoader",
        folder="FastGen",
        origin="https://github.com/NVlabs/FastGen",
        stubs=("torchvision",),
        target="fastgen",
        model="wan",
        left_out="noise, paths and depth for distillation: an output has none",
    ),
    "musubi": Reader(
        title="musubi-tuner, VideoDataset with its BucketBatchManager, Wan",
        folder="musubi-tuner",
        origin="https://github.com/kohya-ss/musubi-tuner",
        package_root="src",
        target="musubi",
        model="wan",
        left_out="control and CLIP image tensors: an output has none",
    ),
    "veomni": Reader(
        title="VeOmni, MappingDataset with the transform dit_offline",
        folder="veomni",
        origin="veomni==0.1.12",
        skipped=("veomni", "veomni.data"),
        stubs=("torchvision",),
        target="veomni",
        model="wan",
        left_out="captions, rates and sizes: the format has none",
    ),
    "open-sora": Reader(
        title="Open-Sora 2.0, CachedVideoTextDataset",
        folder="Open-Sora",
        origin="https://github.com/hpcaitech/Open-Sora",
        stubs=("torchvision", "colossalai"),
        target="open-sora",
        model="hunyuan",
        left_out="its bucket sampler: it needs videos of 256 px and more",
    ),
}
"""The readers by the name that ``--reader`` takes."""


def how_to_get(readers: list[str], folder: str) -> list[str]:
    """Commands that put the code of readers where this bench looks for it."""
    commands = dict.fromkeys(_command(READERS[name], folder) for name in readers)
    return list(commands)


def _command(reader: Reader, folder: str) -> str:
    place = f"{folder}/{reader.folder}"
    if reader.origin.startswith("https://"):
        return f"GIT_LFS_SKIP_SMUDGE=1 git clone --depth 1 {reader.origin} {place}"
    wheel = f"{reader.folder}-{reader.origin.partition('==')[2]}-*.whl"
    return f"pip download --no-deps --dest {folder} '{reader.origin}' && unzip -q {folder}/{wheel} -d {place}"
