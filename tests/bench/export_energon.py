"""Reads an export with Megatron-Energon's own loader: ``python -m tests.bench.export_energon [--megatron-bridge FOLDER]``.

Needs ``pip install megatron-energon``. Exports a mixed set (images and videos, several sizes, Unicode, a caption missing)
and compares what Energon's loader gives with our loader's values: ids, latents, texts, captions, sizes and frame rates.
Compares ``.nv-meta`` and the indexes with those of ``energon prepare``. With a checkout of Megatron-Bridge, its
``WanTaskEncoder`` reads an export too; only its helpers for parallel training, which need megatron-core, are replaced.
Prints a line per check; exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from jobs.encode_text import main as encode_text
from jobs.export_dataset import main as export_dataset
from pipeline.bucket import Bucket
from tests.support.export_set import Expected, write_mixed_set
from tests.support.latent_set import write_latents

EVEN_BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 64), Bucket(1, 32, 32)] * 2
"""Buckets whose latents Megatron-Bridge can cut into patches of 2 x 2."""
TEXT_TOKENS = 512
"""Length to which Megatron-Bridge pads texts."""


def main(argv: list[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron-bridge", type=Path, metavar="FOLDER", help="a checkout of Megatron-Bridge")
    arguments = parser.parse_args(argv)
    print(f"megatron-energon {version('megatron-energon')}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failures = [*check_loader(folder), *check_preparation(folder)]
        if arguments.megatron_bridge is not None:
            failures += check_task_encoder(folder, arguments.megatron_bridge)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def check_loader(folder: Path) -> Iterator[str]:
    """Yield what differs between Energon's samples and our loader's. Leaves the export in ``folder``."""
    output = write_mixed_set(folder / "mixed")
    expected = Expected(output)
    assert export_dataset([str(output), *"--to energon --text t5 --local".split(), "--output", str(folder / "e")]) == 0
    samples = {sample["__key__"]: sample for sample in read_samples(folder / "e")}
    if samples.keys() != set(expected.ids):
        yield f"ids: expected {sorted(expected.ids)}, got {sorted(samples)}"
    for id, sample in samples.items():
        facts, shape = sample["json"], sample["pth"].shape
        same = {
            "latents": torch.equal(sample["pth"], expected.latents[id].to(torch.float16)),
            "text": torch.equal(sample["pickle"], expected.text[id].tokens()),
            "caption": facts["caption"] == expected.captions[id],
            "frame rate": facts["fps"] is None
            if shape[1] == 1
            else math.isclose(facts["fps"], expected.fps[id], rel_tol=1e-6),
        }
        yield from (f"{id}: {name}" for name, is_same in same.items() if not is_same)
    print(f"energon's loader: {len(samples)} samples, latents and texts compared with our loader's")


def read_samples(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield each sample of the split ``train`` once, cooked as Megatron-Bridge cooks it."""
    from megatron.energon import Cooker, DefaultTaskEncoder, basic_sample_keys, stateless

    @stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return basic_sample_keys(sample) | {name: sample[name] for name in ("json", "pth", "pickle")}

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc, unused-ignore]
        """Gives samples as they are."""

        cookers = (Cooker(cook),)

        def encode_sample(self, sample: Any) -> Any:
            return sample

        def batch(self, samples: list[Any]) -> Any:
            return samples[0]

    yield from load(folder, Encoder())


def load(folder: Path, encoder: Any) -> Iterator[Any]:
    """Yield the batches of one sample that Energon's loader gives in one pass."""
    from megatron.energon import WorkerConfig, get_loader, get_val_dataset

    workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        str(folder), split_part="train", batch_size=1, worker_config=workers, task_encoder=encoder
    )
    yield from get_loader(dataset)


def check_preparation(folder: Path) -> Iterator[str]:
    """Yield which files of our ``.nv-meta`` and indexes differ from those of ``energon prepare`` over the same tars."""
    ours, prepared = folder / "e", folder / "prepared"
    prepared.mkdir()
    for tar in ours.glob("*.tar"):
        shutil.copy(tar, prepared)
    command = [str(Path(sys.executable).with_name("energon")), "prepare", "--non-interactive", "--split-ratio", "1,0,0"]
    command += ["--sample-type", "CrudeWebdataset", "--num-workers", "1", str(prepared)]
    subprocess.run(command, check=True, capture_output=True)
    for path in sorted(prepared.glob("*.idx")):
        if path.read_bytes() != (ours / path.name).read_bytes():
            yield f"{path.name} differs from energon's"
    for table in ("samples", "sample_parts"):
        if _rows(ours, table) != _rows(prepared, table):
            yield f"the table {table} of index.sqlite differs from energon's"
    for name in (".info.json", "split.yaml", "dataset.yaml"):
        content = [yaml.safe_load((path / ".nv-meta" / name).read_text()) for path in (ours, prepared)]
        if content[0] != content[1]:
            yield f"{name}: expected {content[1]}, as energon writes it, got {content[0]}"
    print("energon prepare: .nv-meta, the database of samples and the indexes of tars compared")


def _rows(folder: Path, table: str) -> list[Any]:
    connection = sqlite3.connect(folder / ".nv-meta" / "index.sqlite")
    return sorted(connection.execute(f"SELECT * FROM {table}"))  # noqa: S608 (a constant)


def check_task_encoder(folder: Path, checkout: Path) -> Iterator[str]:
    """Yield what differs between the batches of Megatron-Bridge's WanTaskEncoder and our loader's samples."""
    output, export = write_latents(folder / "even", EVEN_BUCKETS, samples_per_shard=4), folder / "wan"
    assert encode_text([str(output), *"--encoder demo --layer t5 --captions caption --local --cpus 1".split()]) == 0
    assert export_dataset([str(output), *"--to energon --text t5 --local".split(), "--output", str(export)]) == 0
    expected = Expected(output)
    by_caption = {caption: id for id, caption in expected.captions.items()}
    encoder = _task_encoder(checkout)
    compared = 0
    for batch in load(export, encoder):
        id = by_caption[batch["video_metadata"]["caption"]]
        latents = expected.latents[id].to(torch.float16)
        tokens = expected.text[id].tokens()
        c, t, h, w = latents.shape
        patches = latents.view(c, t, h // 2, 2, w // 2, 2).permute(1, 2, 4, 3, 5, 0).reshape(-1, c * 4)
        texts = torch.nn.functional.pad(tokens, (0, 0, 0, TEXT_TOKENS - len(tokens)))
        same = {
            "latents": torch.equal(batch["video_latents"][:, 0], patches),
            "grid": batch["grid_sizes"].tolist() == [t, h // 2, w // 2],
            "text": torch.equal(batch["context_embeddings"][:, 0], texts),
        }
        compared += 1
        yield from (f"WanTaskEncoder, {id}: {name}" for name, is_same in same.items() if not is_same)
    if compared != len(expected.ids):
        yield f"WanTaskEncoder: expected {len(expected.ids)} samples, got {compared}"
    print(f"Megatron-Bridge's WanTaskEncoder: {compared} samples compared with our loader's")


def _task_encoder(checkout: Path) -> Any:
    """Import the task encoder from a checkout without what needs megatron-core, and make one."""
    root = checkout / "src" / "megatron" / "bridge"
    for path in (root, *root.rglob("*")):
        if path.is_dir():  # a package that runs no code of its own, since that would import all of the trainer
            package = ModuleType(".".join(["megatron.bridge", *path.relative_to(root).parts]))
            package.__path__ = [str(path)]
            sys.modules[package.__name__] = package
    parallel, packing = ModuleType("parallel_state"), ModuleType("packed_seq_utils")
    parallel.get_context_parallel_world_size = lambda: 1  # type: ignore[attr-defined]
    packing.get_thd_cp_partition_indices = None  # type: ignore[attr-defined]
    core = ModuleType("megatron.core")
    core.parallel_state = parallel  # type: ignore[attr-defined]
    sys.modules["megatron.core"] = core
    sys.modules["megatron.bridge.training.utils.packed_seq_utils"] = packing
    module = importlib.import_module("megatron.bridge.diffusion.data.wan.wan_taskencoder")
    return module.WanTaskEncoder()


if __name__ == "__main__":
    sys.exit(main())
