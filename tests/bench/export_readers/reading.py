"""Reads an export with a trainer's own classes, in a process and an environment of its own.

``python -m tests.bench.export_readers.reading NAME CODE EXPORT RESULT`` writes what the reader gave with ``torch.save``: the
samples, each a mapping with tensors and plain values, and the stand-ins that were imported. ``id`` is that of the sample
where the reader lets one know it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.bench.export_readers.catalog import READERS
from tests.bench.export_readers.stubs import install_stubs, skip_init

Sample = dict[str, Any]


def read_ltx(export: Path) -> Iterator[Sample]:
    from ltx_trainer.datasets import PrecomputedDataset

    dataset = PrecomputedDataset(str(export), {"latents": "latents", "conditions": "conditions"})
    yield from _precomputed(dataset)


def read_fastvideo_ltx2(export: Path) -> Iterator[Sample]:
    from fastvideo.dataset.ltx2_precomputed_dataset import LTX2PrecomputedDataset

    yield from _precomputed(LTX2PrecomputedDataset(str(export)))


def _precomputed(dataset: Any) -> Iterator[Sample]:
    for path, batch in zip(dataset.sample_files["latents"], DataLoader(dataset, batch_size=1), strict=True):
        values = batch["latents"] | batch["conditions"]
        yield {"id": path.stem} | {name: value[0] for name, value in values.items()}


def read_fastvideo_map(export: Path) -> Iterator[Sample]:
    from fastvideo.dataset.dataloader.schema import pyarrow_schema_t2v
    from fastvideo.dataset.parquet_dataset_map_style import build_parquet_map_style_dataloader

    _start_fastvideo(export)
    _, loader = build_parquet_map_style_dataloader(str(export), 2, 0, pyarrow_schema_t2v, drop_last=True)
    for batch in loader:
        for n, info in enumerate(batch["info_list"]):
            tensors = {name: batch[name][n] for name in ("vae_latent", "text_embedding", "text_attention_mask")}
            yield info | tensors | {"prompt": batch["caption_text"][n]}


def read_fastvideo_iterable(export: Path) -> Iterator[Sample]:
    from fastvideo.dataset.parquet_dataset_iterable_style import build_parquet_iterable_style_dataloader

    _start_fastvideo(export)
    _, loader = build_parquet_iterable_style_dataloader(str(export), 1, 1)
    for latents, texts, masks, captions in loader:
        yield {
            "vae_latent": latents[0, 0],
            "text_embedding": texts[0, 0],
            "text_attention_mask": masks[0, 0],
            "prompt": captions[0][0],
        }


def _start_fastvideo(export: Path) -> None:
    from fastvideo.distributed import init_distributed_environment, initialize_model_parallel

    meeting = export.with_name(f"{export.name}-meeting")
    init_distributed_environment(1, 0, f"file://{meeting}", 0)
    initialize_model_parallel(1, 1)


def read_automodel(export: Path) -> Iterator[Sample]:
    from nemo_automodel.components.datasets.diffusion.collate_fns import TextToVideoDataloaderConfig

    config = TextToVideoDataloaderConfig(cache_dir=str(export), shuffle=False, drop_last=False, num_workers=0)
    built = config.build(dp_rank=0, dp_world_size=1, batch_size=2)
    metadata = built.dataloader.dataset.metadata
    for numbers, batch in zip(built.sampler, built.dataloader, strict=True):
        for n, number in enumerate(numbers):
            facts = metadata[number]
            names = ("prompt", "fps", "num_frames", "bucket_resolution")
            tensors = {name: batch[name][n] for name in ("video_latents", "text_embeddings")}
            yield {"id": _id_of(Path(facts["cache_file"]).stem)} | {name: facts[name] for name in names} | tensors


def read_fastgen(export: Path) -> Iterator[Sample]:
    from fastgen.datasets.wds_dataloaders import WDSLoader

    members = {"real": "latent.pth", "condition": "txt_emb.pth", "prompt": "txt"}
    for folder in sorted(path for path in export.iterdir() if any(path.glob("*.tar"))):
        loader = WDSLoader([f"WDS:{folder}"], 2, members, train=False, num_workers=0, partial=True)
        for batch in loader:
            for n, name in enumerate(batch["fname"]):
                yield {"id": name.rpartition("/")[2]} | {member: batch[member][n] for member in members}


def read_musubi(export: Path) -> Iterator[Sample]:
    from argparse import Namespace

    from musubi_tuner.dataset.config_utils import (
        BlueprintGenerator,
        ConfigSanitizer,
        generate_dataset_group_by_blueprint,
    )

    # The lines of jobs/guides/trainers.md
    config = {
        "general": {"resolution": [128, 128], "enable_bucket": True, "bucket_no_upscale": True, "batch_size": 2},
        "datasets": [{"video_directory": str(export), "cache_directory": str(export)}],
    }
    generator = BlueprintGenerator(ConfigSanitizer())
    blueprint = generator.generate(config, Namespace(debug_dataset=False), architecture="wan")
    group = generate_dataset_group_by_blueprint(blueprint.dataset_group, training=True)
    for dataset in group.datasets:
        manager = dataset.batch_manager
        for number, (size, place) in enumerate(manager.bucket_batch_indices):
            items = manager.buckets[size][place * manager.batch_size : (place + 1) * manager.batch_size]
            batch = manager[number]
            for n, item in enumerate(items):
                yield {"id": _id_of(item.item_key), "latents": batch["latents"][n], "t5": batch["t5"][n]}


def read_veomni(export: Path) -> Iterator[Sample]:
    from veomni.data.dataset import build_mapping_dataset
    from veomni.data.multimodal.dit.data_transform import process_dit_offline_example

    dataset = build_mapping_dataset(str(export / "data"), transform=process_dit_offline_example)
    for number in range(len(dataset)):  # the dataset begins again after its end
        yield from dataset[number]


def read_open_sora(export: Path) -> Iterator[Sample]:
    from opensora.datasets.datasets import CachedVideoTextDataset
    from opensora.datasets.utils import map_target_fps

    dataset = CachedVideoTextDataset(
        data_path=str(export / "dataset.csv"),
        cached_video=True,
        cached_text=True,
        load_original_video=False,
        fps_max=24,
    )
    for number, row in enumerate(dataset.data.to_dict("records")):
        size = {name: row[name] for name in ("num_frames", "height", "width")}
        tensors = dataset["-".join(map(str, (number, *size.values())))]
        _, interval = map_target_fps(row["fps"], 24)
        yield {"id": Path(row["latents_path"]).stem, "text": row["text"], "sampled": interval} | size | tensors


def _id_of(name: str) -> str:
    """The id of a sample, from ``<unit>-<id>``."""
    return name.rpartition("-")[2]


FUNCTIONS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "ltx": read_ltx,
    "ltx-19b": read_ltx,
    "fastvideo-ltx2": read_fastvideo_ltx2,
    "fastvideo-map": read_fastvideo_map,
    "fastvideo-iterable": read_fastvideo_iterable,
    "automodel": read_automodel,
    "fastgen": read_fastgen,
    "musubi": read_musubi,
    "veomni": read_veomni,
    "open-sora": read_open_sora,
}
"""The function that reads, by the name of the reader."""


def main(name: str, code: Path, export: Path, result: Path) -> None:
    """Read an export and save what was read."""
    reader = READERS[name]
    if reader.stubs:
        import transformers.utils

        transformers.utils.is_torchvision_available()  # it must not find a stand-in
    finder = install_stubs(reader.stubs)
    root = code / reader.folder / reader.package_root
    sys.path.append(str(root))
    skip_init(root, reader.skipped)
    samples = list(FUNCTIONS[name](export))
    torch.save({"samples": samples, "stubs": sorted(finder.used)}, result)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
