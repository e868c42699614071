"""Training loops of other libraries over our batches, one process per rank. Each rank records what it trained on.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.loader.trainer_loops FOLDER lightning ddp`` runs these loops
one after the other over ``FOLDER/out``, and writes ``FOLDER/<loop>/<name>-<rank>.json``: a list with the epoch, the ids and
the shape of the latents of each step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError
from pipeline.loader import Batches, LatentDataset, MixedDataset, agreement
from pipeline.loader.mixed.weights import Weight
from pipeline.loader.torch_data import SampleDataset, StepSampler

EPOCHS = 3
BATCH_SIZE = 2
RANKS = 2


class Records:
    """The batches that this rank trained on, in a file that a later process of the same name continues."""

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self._path = folder / f"{name}-{rank}.json"
        self.steps: list[Any] = json.loads(self._path.read_text()) if self._path.exists() else []

    def add(self, epoch: int, batch: Any) -> None:
        set_name = [Path(batch["dataset"]).name] if "dataset" in batch else []
        self.steps.append([epoch, list(batch["id"]), list(batch["latents"].shape), *set_name])
        self._path.write_text(json.dumps(self.steps))


def train_bare_ddp(data: LatentDataset, records: Path) -> None:
    """Step a model under DistributedDataParallel."""
    step_under_ddp(data, records)


def step_under_ddp(data: LatentDataset | MixedDataset, records: Path) -> None:
    """Step a model under DistributedDataParallel. The ranks check that all of them have the same shape."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    batches = data.batches(BATCH_SIZE)
    seen = Records(records, "ddp", batches.rank)
    for epoch in range(EPOCHS):
        for batch in batches:
            shapes: list[Any] = [None, None]
            torch.distributed.all_gather_object(shapes, batch["latents"].shape)
            assert shapes[0] == shapes[1]
            model(batch["latents"].reshape(-1, 1)).mean().backward()
            seen.add(epoch, batch)


def train_with_accelerate(data: LatentDataset, records: Path) -> None:
    """Train from unprepared batches, then from a prepared DataLoader whose global batches accelerate splits."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    rank, world_size = accelerator.process_index, accelerator.num_processes
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    batches = data.batches(BATCH_SIZE)
    assert accelerator.prepare(batches) is batches, "what is no DataLoader is left alone"
    seen = Records(records, "accelerate_batches", rank)
    for epoch in range(EPOCHS):
        for batch in batches:
            accelerator.backward(model(batch["latents"].reshape(-1, 1)).mean())
            seen.add(epoch, batch)
    sampler = StepSampler(data, BATCH_SIZE * world_size, rank=0, world_size=1)
    loader = accelerator.prepare(DataLoader(SampleDataset(data), batch_sampler=sampler))
    seen = Records(records, "accelerate_loader", rank)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            seen.add(epoch, batch)
    loader.set_epoch(1)
    seen = Records(records, "accelerate_skip", rank)
    for batch in accelerator.skip_first_batches(loader, 2):
        seen.add(1, batch)
    try:
        accelerator.prepare(DataLoader(SampleDataset(data), batch_sampler=StepSampler(data, BATCH_SIZE)))
    except Exception as error:
        (records / f"refused-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def make_lightning(records: Path) -> tuple[Callable[[str], Any], Callable[..., Any]]:
    """Return a maker of modules that record their batches under a name, and a maker of trainers."""
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            Records(records, self.name, self.global_rank).add(self.current_epoch, batch)
            return self.layer(batch["latents"].reshape(-1, 1)).mean()

        def validation_step(self, batch: Any, _: int) -> None:
            when = -1 if self.trainer.sanity_checking else self.current_epoch
            Records(records, f"{self.name}_validation", self.global_rank).add(when, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def train(**options: Any) -> lightning.Trainer:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(
            accelerator="cpu", devices=RANKS, strategy="ddp", use_distributed_sampler=False, **quiet, **options
        )

    return Model, train


def train_with_lightning(data: LatentDataset, records: Path) -> None:
    """Fit with and without validation, then stop within an epoch and resume from Lightning's own checkpoint."""
    make_module, make_trainer = make_lightning(records)

    def batches(**options: Any) -> Batches:
        return data.batches(BATCH_SIZE, rank=int(os.environ["RANK"]), world_size=RANKS, **options)

    plain = make_trainer(max_epochs=EPOCHS, enable_checkpointing=False)
    plain.fit(make_module("lightning"), batches())
    validated = make_trainer(max_epochs=EPOCHS, enable_checkpointing=False, check_val_every_n_epoch=2)
    validated.fit(make_module("lightning_validated"), batches(), batches(shuffle=False, loop="once"))
    resume_with_lightning(batches, records)


def resume_with_lightning(make_batches: Callable[[], Any], records: Path) -> None:
    """Stop after 8 steps and resume from Lightning's own checkpoint, which holds the state of the batches."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    make_module, make_trainer = make_lightning(records)
    keep = ModelCheckpoint(dirpath=records / "checkpoints", every_n_train_steps=8, save_top_k=-1)
    make_trainer(max_steps=8, callbacks=[keep]).fit(make_module("lightning_resumed"), make_batches())
    (checkpoint,) = (records / "checkpoints").glob("*.ckpt")
    resumed = make_trainer(max_epochs=EPOCHS, enable_checkpointing=False)
    resumed.fit(make_module("lightning_resumed"), make_batches(), ckpt_path=checkpoint)


def mix(data: LatentDataset, weight: Weight = 1.0) -> MixedDataset:
    """Mix an output, under a filter that changes, with a small one beside it, whose weight changes."""
    changing = LatentDataset(data.url, {0: None, 1: "meta_score >= 4"})
    return MixedDataset({changing: weight, f"{data.url}-small": lambda epoch, _: 1.0 if epoch < 1 else 3.0}, seed=5)


def train_on_several_sets(data: LatentDataset, records: Path) -> None:
    """Step a model under DistributedDataParallel, then with Lightning, then with other weights on one rank."""
    rank = torch.distributed.get_rank()
    step_under_ddp(mix(data), records)
    resume_with_lightning(lambda: mix(data).batches(BATCH_SIZE, rank=rank, world_size=RANKS), records)
    try:
        with mock.patch.object(agreement, "WAIT_S", 1.0):
            next(iter(mix(data, weight=1.0 + rank).batches(BATCH_SIZE)))
    except ConfigError as error:
        (records / f"refused-{rank}.txt").write_text(str(error))
    torch.distributed.barrier()


def train_from_a_growing_output(data: LatentDataset, records: Path) -> None:
    """Open an output on rank 0, let it grow, then open it on rank 1: as it is, and with a filter of its own."""
    rank = torch.distributed.get_rank()
    growing, moved = records / "growing", records / "later"
    if rank == 0:
        opened = LatentDataset(str(growing))
        (moved / "unit.parquet").rename(growing / "metadata" / (moved / "name").read_text())
    torch.distributed.barrier()
    if rank == 1:
        opened = LatentDataset(str(growing))
    assert len(LatentDataset(str(growing)).columns) > len(opened.columns), "opened a second time, it has grown"
    seen = Records(records, "growing", rank)
    for batch in opened.batches(BATCH_SIZE):
        seen.add(0, batch)
    filtered = LatentDataset(str(growing), "meta_score > 2" if rank else None)
    torch.distributed.barrier()
    try:
        with mock.patch.object(agreement, "WAIT_S", 1.0):
            next(iter(filtered.batches(BATCH_SIZE)))
    except ConfigError as error:
        (records / f"refused-{rank}.txt").write_text(str(error))
    torch.distributed.barrier()


LOOPS = {
    "lightning": train_with_lightning,
    "accelerate": train_with_accelerate,
    "ddp": train_bare_ddp,
    "mixed": train_on_several_sets,
    "growing": train_from_a_growing_output,
}


def main() -> None:
    """Run loops. The first trainer makes the process group, unless a bare loop comes first."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        if name in ("ddp", "mixed", "growing") and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        LOOPS[name](LatentDataset(folder / "out"), folder / name)


if __name__ == "__main__":
    main()
