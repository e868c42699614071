"""Runs the Python code of the README and the pages as written, except for the URLs in it; checks what their tables list."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.encode_dataset import main
from jobs.encode_text import main as encode_text
from pipeline.bucket import Bucket
from pipeline.loader import Batch, LatentDataset, MixedBatches, MixedDataset
from stvae.card import OPEN_SORA_CLASS
from stvae.conventions import TABLE
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
LOADER = (ROOT / "pipeline" / "loader" / "README.md").read_text()
VAES = (ROOT / "stvae" / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README + LOADER + VAES, flags=re.S)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for i in range(8):
        make_clip(folder / "videos" / f"{i}.mp4", 51, seed=i)
    rows = [{"path": f"videos/{i}.mp4", "caption": f"number {i}", "aesthetic": 5.0 + i} for i in range(8)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--local",
        "--source",
        str(folder / "m.jsonl"),
        "--output",
        str(folder / "latents"),
        "--vae",
        str(TINY),
    ]
    assert main([*arguments, "--buckets", "32x56x51", "--cpus", "2"]) == 0
    text = ["--encoder", "demo", "--layer", "t5", "--captions", "caption", "--local", "--cpus", "1"]
    assert encode_text([str(folder / "latents"), *text]) == 0
    return folder / "latents"


def run(block: str, names: dict[str, Any], replacements: dict[str, str]) -> dict[str, Any]:
    """Execute a block of a page after the replacements; returns its global names."""
    for old, new in replacements.items():
        assert old in block, f"the page no longer says {old}"
        block = block.replace(old, new)
    exec(block, names)  # noqa: S102
    return names


def block_with(text: str) -> str:
    """The one Python block that contains ``text``."""
    (block,) = [b for b in PYTHON_BLOCKS if text in b]
    return block


def test_the_training_loop(output: Path) -> None:
    block = block_with("for epoch in range(10)")
    names = run(
        block, {"rank": 0, "world_size": 1}, {"s3://bucket/latents": str(output), "batch_size=8": "batch_size=2"}
    )
    assert names["x"].shape == (2, 4, 15, 4, 7) and names["state"]["epoch"] == 10 and len(names["data"]) == 7


def test_every_option_in_the_table_is_a_parameter_of_the_loader(output: Path) -> None:
    table = LOADER[LOADER.index("| you want | say |") : LOADER.index("`where` takes")]
    signatures = [inspect.signature(call).parameters for call in (LatentDataset, LatentDataset.batches, MixedDataset)]
    options = re.findall(r"[(, `](\w+)=", table)
    assert len(options) > 15 and all(any(name in names for names in signatures) for name in options)
    for field in re.findall(r'batch\["(\w+)"\]', README + LOADER):
        assert field in Batch.__annotations__, field


def test_the_first_loop(output: Path) -> None:
    names = run(
        block_with("# without a text layer, leave out text="),
        {},
        {"s3://bucket/latents": str(output)},
    )
    assert names["x"].shape == (8, 4, 15, 4, 7) and names["y"].shape == (8, 9, 32)


def test_text_embeddings(output: Path) -> None:
    names = run(block_with("text_dropout=0.1"), {}, {"s3://bucket/latents": str(output)})
    assert names["batch"]["text_embeddings"].shape[::2] == (8, 32) and names["batch"]["text_dropped"].shape == (8,)


def test_joins_windows_and_captions(output: Path, tmp_path: Path) -> None:
    ids = LatentDataset(str(output)).columns["id"]
    extra = {"id": ids, "clip_score": [n / 10 for n in range(8)], "long_caption": ["long"] * 8}
    pq.write_table(pa.table(extra), tmp_path / "recaptioned.parquet")
    places = {
        "s3://bucket/latents": str(output),
        "s3://bucket/recaptioned.parquet": str(tmp_path / "recaptioned.parquet"),
    }
    names = run(block_with("recaptioned"), {}, places)
    assert len(names["data"]) == 5 * 3 and names["batch"]["latents"].shape == (4, 4, 5, 4, 7)
    assert names["batch"]["latents"].dtype == torch.bfloat16


def test_filters_that_change(output: Path) -> None:
    by_rank = []
    for rank in range(2):
        names = run(
            block_with("a change that was not planned"),
            {"rank": rank, "world_size": 2},
            {"s3://bucket/latents": str(output), "batch_size=2": "batch_size=1"},
        )
        assert names["state"]["epoch"] == 5 == names["batches"].epoch and len(names["data"]) == 7
        by_rank.append([batch["id"] for batch in names["batches"]])
    seen = [name for rank in by_rank for step in rank for name in step]
    assert len(seen) == len(set(seen)) == 4 and len(by_rank[0]) == 2, "4 of 5 samples, in whole steps of two ranks"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outputs that the page mixes: 32 samples with scores from 0 to 15.5, and 16 others."""
    folder = tmp_path_factory.mktemp("several")
    wide, tall = Bucket(17, 32, 56), Bucket(17, 56, 32)
    write_latents(folder / "scenic", [wide, tall] * 16)
    write_latents(folder / "faces", [wide] * 16, first_key=100)
    return {f"s3://bucket/{name}": str(folder / name) for name in ("scenic", "faces")}


def test_several_sets(several: dict[str, str]) -> None:
    block = block_with("# a curriculum").replace("meta_aesthetic", "meta_score")
    steps: list[list[tuple[str, list[str], Any]]] = []
    for rank in range(2):
        seen: list[tuple[str, list[str], Any]] = []
        with mock.patch.object(MixedBatches, "_pass", _recording(seen)):
            names = run(block, {"rank": rank, "world_size": 2}, several)
        assert names["state"]["epoch"] == names["batches"].epoch == 3 and len(seen) == 3 * len(names["batches"])
        steps.append(seen)
    length = len(names["batches"])
    assert [(name, shape) for name, _, shape in steps[0]] == [(name, shape) for name, _, shape in steps[1]]
    faces = [name.endswith("faces") for name, _, _ in steps[0]]
    assert abs(sum(faces[:length]) - 0.3 * length) <= 2 and abs(sum(faces[length:]) - 0.125 * 2 * length) <= 2
    ids = [id_ for one, other in zip(*steps, strict=True) if one[0].endswith("faces") for id_ in one[1] + other[1]]
    assert len(ids) == 4 * sum(faces) and len(set(ids[:16])) == len(ids[:16])


def _recording(seen: list[tuple[str, list[str], Any]]) -> Callable[[MixedBatches, Any], None]:
    original = MixedBatches._pass

    def record(batches: MixedBatches, batch: Any) -> None:
        seen.append((batch["dataset"], batch["id"], batch["latents"].shape))
        original(batches, batch)

    return record


def test_several_sets_in_pytorchs_loaders(several: dict[str, str]) -> None:
    pytest.importorskip("torchdata")
    for rank in range(2):
        names = run(block_with("MixedSampleDataset"), {"rank": rank, "world_size": 2}, several)
        assert len(set(names["batch"]["dataset"])) == 1 and names["sampler"].epoch == 1
        names["loader"].load_state_dict(names["state"])


def test_open_soras_batches(output: Path) -> None:
    names = run(block_with("open_sora_batch"), {}, {"s3://bucket/latents": str(output)})
    assert names["inputs"]["video"].shape == (8, 4, 15, 4, 7)


def test_pytorchs_loaders(output: Path) -> None:
    pytest.importorskip("torchdata")
    block = block_with("SampleDataset(data, seed=0)")
    names = run(block, {"rank": 0, "world_size": 1}, {"s3://bucket/latents": str(output)})
    assert names["batch"]["latents"].shape == (2, 4, 15, 4, 7)
    names["loader"].load_state_dict(names["state"])


def test_the_accelerate_recipe(output: Path) -> None:
    names = run(block_with("accelerate"), {}, {"s3://bucket/latents": str(output)})
    assert len(names["batches"]) == 4 and names["latents"].shape == (2, 4, 15, 4, 7) and names["sampler"].epoch == 3


def test_the_ray_train_recipe(output: Path) -> None:
    """Uses a stand-in for Ray Train's context, without a cluster."""
    names = run(block_with("ray.train"), {}, {})
    context = mock.Mock(**{"get_world_rank.return_value": 1, "get_world_size.return_value": 2})
    reported: list[dict[str, Any]] = []
    with mock.patch("ray.train.get_context", lambda: context), mock.patch("ray.train.report", reported.append):
        seen: list[str] = []
        config = {"latents": str(output), "train_step": lambda batch: seen.extend(batch["id"])}
        names["train_worker"](config)
        names["train_worker"](config | {"state": reported[0]["loader"]})
    batches = LatentDataset(str(output)).batches(2, seed=0, rank=1, world_size=2)
    two_epochs = [id_ for _ in range(2) for batch in batches for id_ in batch["id"]]
    assert len(seen) == 8 and seen == two_epochs, "a rank sees its half, and after the restart the next epoch"


def test_the_lightning_recipe(output: Path, tmp_path: Path) -> None:
    """Stops a real trainer within an epoch and resumes from its checkpoint."""
    import lightning

    latents = run(block_with("import lightning"), {}, {})["Latents"]
    seen: list[list[str]] = []

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def training_step(self, batch: Batch, _: int) -> None:
            seen.append(batch["id"])

        def configure_optimizers(self) -> None:
            return None

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3)
    stopped = lightning.Trainer(max_steps=3, use_distributed_sampler=False, callbacks=[keep], **quiet)
    stopped.fit(Model(), latents(str(output)))
    (checkpoint,) = tmp_path.glob("*.ckpt")
    resumed = lightning.Trainer(max_epochs=2, use_distributed_sampler=False, enable_checkpointing=False, **quiet)
    resumed.fit(Model(), latents(str(output)), ckpt_path=checkpoint)
    batches = LatentDataset(str(output)).batches(2)
    assert len(seen) == 8 and seen == [batch["id"] for _ in range(2) for batch in batches]


def test_the_webdataset_recipe(output: Path) -> None:
    block = block_with("import webdataset")
    index = json.loads((output / "index" / "0000.json").read_text())
    names = run(block, {"index": index}, {'"latents/"': f'"{output}/"'})
    assert names["mean"].shape == names["logvar"].shape == (4, 15, 4, 7) and len(names["shift"]) == 4


def test_the_vae_alone() -> None:
    block = block_with("load_vae")
    pixels = torch.zeros(1, 3, 18, 32, 32, dtype=torch.uint8)
    places = {"/models/OpenSora-VAE-v1.2": str(TINY), '"cuda"': '"cpu"', '"bfloat16"': '"float32"'}
    names = run(block, {"pixels": pixels, "num_frames": 18}, places)
    assert names["frames"].shape == pixels.shape and names["vae"].latent_size((51, 480, 848)) == (15, 60, 106)


def test_every_room_is_in_the_tree() -> None:
    tree = README[README.index("## The tree") :]
    rooms = {path.parent for top in ("stvae", "pipeline", "jobs") for path in (ROOT / top).rglob("*.py")}
    for name in [
        *(f"{room.name}/" for room in rooms),
        "tests/",
        *(p.name for p in (ROOT / "pipeline").glob("[a-z]*.py")),
    ]:
        assert re.search(rf"(?<!\w){re.escape(name)}", tree), name


def test_every_vae_class_is_in_the_table() -> None:
    for class_name in (OPEN_SORA_CLASS, *TABLE):
        assert f"| `{class_name}` |" in VAES, class_name


def test_every_test_in_the_table_of_faults_exists() -> None:
    """The table names a test by its file under ``tests``, with or without the folder, and its function."""
    text = (ROOT / "tests" / "FAULTS.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) == text.count(".py::") > 50
    for file, name in named:
        (path,) = (ROOT / "tests").rglob(file)
        source = path.read_text()
        assert f"def {name}(" in source or f"\n{name} = " in source, f"{file}::{name}"
