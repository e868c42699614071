"""Runs the Python blocks of the loader's page on several ranks for three epochs, and records what each rank gets.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.loader.page_recipes FOLDER NAME...`` runs the blocks of these
names as they are written, except for places and sizes, over the outputs in FOLDER. Loops over batches get a line that
records the batch; a block without a loop over epochs gets one around its loop over batches.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support.paths import ROOT

PAGE = (ROOT / "pipeline" / "loader" / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
EPOCHS = 3


@dataclass(frozen=True)
class Block:
    """A block of the page: text that only it has, and what is replaced in it for the test."""

    text: str
    places: dict[str, str] = field(default_factory=dict)


SETS = {f"s3://bucket/{name}": f"FOLDER/{name}" for name in ("scenic", "faces")}
RECIPES = {
    "start": Block("and meta_aesthetic > 5", {"meta_aesthetic": "meta_score", "batch_size=8": "batch_size=2"}),
    "selection": Block("recaptioned", {"s3://bucket/recaptioned.parquet": "FOLDER/recaptioned.parquet"}),
    "text": Block("text_dropout=0.1", {"batch_size=8": "batch_size=2"}),
    "groups": Block('groups={"240p"', {"s3://bucket/two-sizes": "FOLDER/two-sizes", "batch_size=8": "batch_size=2"}),
    "open_sora": Block("open_sora_batch", {"batch_size=8": "batch_size=2"}),
    "filters": Block("a change that was not planned", {"meta_aesthetic": "meta_score", ", 3: ": ", 2: "}),
    "sets": Block("# a curriculum", {"meta_aesthetic": "meta_score"} | SETS),
    "sets_loader": Block("MixedSampleDataset", SETS),
    "data_loader": Block("SampleDataset(data, seed=0)"),
    "webdataset": Block("import webdataset", {'"latents/"': '"FOLDER/latents/"'}),
    "accelerate": Block("from accelerate", {"Accelerator(": "Accelerator(cpu=True, "}),
    "lightning": Block(
        "import lightning",
        {"max_epochs=1, ": 'max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", **QUIET, '},
    ),
    "ray": Block("import ray.train"),
    "parallel": Block("init_device_mesh", {'"cuda"': '"cpu"'}),
    "energon": Block("megatron.energon", {'"latents"': '"FOLDER/latents"'}),
}
"""All blocks of the page by a name for the test."""


def block_of(recipe: Block) -> str:
    """The text of a block as the page has it."""
    (block,) = [block for block in BLOCKS if recipe.text in block]
    return block


def prepared(name: str, folder: Path) -> str:
    """The text of a block after its replacements."""
    recipe = RECIPES[name]
    block = block_of(recipe)
    for old, new in recipe.places.items():
        assert old in block, f"the page no longer says {old}"
        block = block.replace(old, new.replace("FOLDER", str(folder)))
    return block.replace("s3://bucket/latents", str(folder / "latents"))


class Recording(ast.NodeTransformer):
    """Adds ``record(epoch, batch)`` to loops over batches, and a loop over epochs where there is none around them."""

    def __init__(self) -> None:
        self._in_epochs = False

    def visit_For(self, loop: ast.For) -> ast.AST:
        target = ast.unparse(loop.target)
        if target == "epoch":
            loop.iter = ast.parse(f"range({EPOCHS})", mode="eval").body
            self._in_epochs = True
            self.generic_visit(loop)
            self._in_epochs = False
            return loop
        assert target in ("batch", "sample"), f"a loop over {target}: is it over batches?"
        loop.body.insert(0, ast.parse(f"record(epoch, {target})").body[0])
        if self._in_epochs:
            return loop
        once = ast.parse(f"iterated = {ast.unparse(loop.iter)}\nfor epoch in range({EPOCHS}): pass").body
        loop.iter = ast.Name("iterated", ast.Load())
        assert isinstance(once[1], ast.For)
        once[1].body = [loop]
        return ast.If(ast.Constant(True), once, [])


class Recorder:
    """Keeps the epoch, ids and shape of every batch of this rank in a file. It can be sent to workers of Ray."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._steps: list[Any] = []

    def __call__(self, epoch: int, batch: Any) -> None:
        if "__key__" in dir(batch):  # Energon's
            ids, shape = list(batch.__key__), list(batch.latents.shape)
        elif "__key__" in batch:  # webdataset's
            ids, shape = [batch["__key__"]], list(batch["latent.npy"].shape)
        else:
            starts = batch.get("start_frame", [0] * len(batch["id"]))
            ids = [f"{name}+{int(start)}" for name, start in zip(batch["id"], starts, strict=True)]
            shape = list(batch["latents"].shape)
        self._steps.append([epoch, ids, shape])
        path = self._folder / f"{self._name}-{os.environ['RANK']}.json"
        path.write_text(json.dumps(self._steps))


def run_block(name: str, folder: Path, **names: Any) -> dict[str, Any]:
    """Execute a block that records what it gets. Returns its names."""
    tree = ast.fix_missing_locations(Recording().visit(ast.parse(prepared(name, folder))))
    names |= {"record": Recorder(folder, name)}
    exec(compile(tree, f"block {name}", "exec"), names)  # noqa: S102
    return names


def run_lightning(folder: Path) -> None:
    """Fit a model with the data module and the trainer of the page."""
    import lightning

    record = Recorder(folder, "lightning")

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            record(self.current_epoch, batch)
            return self.layer(batch["latents"].reshape(-1, 1)).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    names = run_block("lightning", folder, QUIET=quiet)
    names["trainer"].fit(Model(), names["Latents"](str(folder / "latents")))


def run_ray(folder: Path) -> None:
    """Run the worker of the page on two workers of Ray Train."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    names = run_block("ray", folder)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        names["train_worker"],
        train_loop_config={"latents": str(folder / "latents"), "train_step": len},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(folder / "storage")),
    ).fit()


def main() -> None:
    """Run blocks, one after the other."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        if name == "ray":
            run_ray(folder)
            continue
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if name == "lightning":
            run_lightning(folder)
        elif name == "webdataset":
            index = json.loads((folder / "latents" / "index" / "0000.json").read_text())
            run_block(name, folder, index=index)
        else:
            run_block(name, folder, rank=rank, world_size=world_size)


if __name__ == "__main__":
    main()
