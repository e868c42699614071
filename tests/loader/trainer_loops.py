"""Training loops of other libraries over our batches, one process per rank. Each rank records what it trained on.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.loader.trainer_loops lightning LATENTS RECORDS`` writes
``RECORDS/<name>-<rank>.json``: a list with the epoch, the ids and the shape of the latents of each step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError
from pipeline.loader import Batches, LatentDataset, agreement
from pipeline.loader.torch_data import SampleDataset, StepSampler

EPOCHS = 3
BATCH_SIZE = 2


class Records:
    """The batches that this rank trained on, in a file that a later process of the same name continues."""

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self._path = folder / f"{name}-{rank}.json"
        self.steps: list[Any] = json.loads(self._path.read_text()) if self._path.exists() else []

    def add(self, epoch: int, batch: Any) -> None:
        self.steps.append([epoch, list(batch["id"]), list(batch["latents"].shape)])
        self._path.write_text(json.dumps(self.steps))


def train_bare_ddp(data: LatentDataset, records: Path) -> None:
    """Step a model under DistributedDataParallel. The forward pass checks that all ranks have the same shape."""
    torch.distributed.init_process_group("gloo")
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
    torch.distributed.destroy_process_group()


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


def train_with_lightning(data: LatentDataset, records: Path) -> None:
    """Fit with and without validation, then stop within an epoch and resume from Lightning's own checkpoint."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

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
            accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, **quiet, **options
        )

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def batches(**options: Any) -> Batches:
        return data.batches(BATCH_SIZE, rank=rank, world_size=ranks, **options)

    plain = train(max_epochs=EPOCHS, enable_checkpointing=False)
    plain.fit(Model("lightning"), batches())
    validated = train(max_epochs=EPOCHS, enable_checkpointing=False, check_val_every_n_epoch=2)
    validated.fit(Model("lightning_validated"), batches(), batches(shuffle=False, loop="once"))
    keep = ModelCheckpoint(dirpath=records / "checkpoints", every_n_train_steps=8, save_top_k=-1)
    train(max_steps=8, callbacks=[keep]).fit(Model("lightning_resumed"), batches())
    (checkpoint,) = (records / "checkpoints").glob("*.ckpt")
    resumed = train(max_epochs=EPOCHS, enable_checkpointing=False)
    resumed.fit(Model("lightning_resumed"), batches(), ckpt_path=checkpoint)


def train_with_ray(data: LatentDataset, records: Path) -> None:
    """Run two workers of Ray Train, which find out their ranks themselves."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    def train_worker(config: dict[str, str]) -> None:
        batches = LatentDataset(config["latents"]).batches(BATCH_SIZE)
        seen = Records(Path(config["records"]), "ray", batches.rank)
        for epoch in range(EPOCHS):
            for batch in batches:
                seen.add(epoch, batch)
        ray.train.report({"loss": 0.0})

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        train_worker,
        train_loop_config={"latents": data.url, "records": str(records)},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(records / "storage")),
    ).fit()


def train_from_a_growing_output(data: LatentDataset, records: Path) -> None:
    """Open an output on rank 0, let it grow, then open it on rank 1: as it is, and with a filter of its own."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    growing, moved = Path(data.store.folder or ""), Path(f"{data.store.folder}-later")
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
    agreement.WAIT_S = 1.0
    try:
        next(iter(filtered.batches(BATCH_SIZE)))
    except ConfigError as error:
        (records / f"refused-{rank}.txt").write_text(str(error))
    torch.distributed.barrier()


LOOPS = {
    "growing": train_from_a_growing_output,
    "ddp": train_bare_ddp,
    "accelerate": train_with_accelerate,
    "lightning": train_with_lightning,
    "ray": train_with_ray,
}


def main() -> None:
    """Run one loop."""
    name, latents, records = sys.argv[1:]
    LOOPS[name](LatentDataset(latents), Path(records))


if __name__ == "__main__":
    main()
