"""Measures planning, resuming and finishing of large outputs: ``python -m tests.bench.scale``.

Outputs are made up: unit metadata, plan and tars are written by the product's own code, but every unit is a copy of the
first under names, ids and captions of its own, and no video is ever opened. Each phase runs in a process of its own, so
that its peak of resident memory is its own; figures are printed for each size, so that what grows faster than the size
shows. Phases on Ray have a cluster of one or two CPUs on this machine. Their seconds begin when it runs, and their memory
and processor seconds are those of the driver alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bucket import Bucket
from pipeline.encode.encoder import ShardEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.errors import Reject
from pipeline.executor import ray_data as ray_module
from pipeline.executor.ray_cluster import connect_to_ray
from pipeline.executor.ray_map import map_on_ray
from pipeline.executor.tasks import in_order, unpack
from pipeline.output.dataset import open_dataset
from pipeline.output.index import newest_index
from pipeline.output.index_builder import complete_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.plan import freeze_generation, freeze_plan, missing_units, read_plan
from pipeline.output.ranges.orphans import remove_orphans
from pipeline.output.shard_writer import ShardWriter
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.output.verify import verify
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.summary import summarize
from pipeline.recipe import Recipe, Run
from pipeline.sources import folder as folder_module
from pipeline.sources.discovery import find_sources
from pipeline.sources.item import Item
from pipeline.sources.units import Unit, unit_name
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.store import Store
from pipeline.video.outcomes import RejectedWindow
from pipeline.video.windows import Skip
from stvae import read_card
from tests.support.golden import TINY
from tests.support.latent_set import latent
from tests.support.plain_clips import clip_of, plain_facts

SOURCE = "s3://videos/clips.parquet"
BUCKETS = (Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(17, 56, 32))
COLUMNS = pa.schema([("meta_aesthetic", pa.float64()), ("meta_license", pa.string())])
WORDS = (
    "a the wide slow bright shot of river city woman dog street rain over camera moves through night car sea".split()
)
LINKS = 20_000
"""Hard links per tar; file systems limit their number."""
REPORTS = 2_000
"""Reports to wait for after the first one came back through Ray."""


def recipe_of(unit_items: int) -> Recipe:
    card = read_card(str(TINY))
    return Recipe(
        vae=card.sha256,
        buckets=BUCKETS,
        micro_batch=(1,) * len(BUCKETS),
        unit_clips=unit_items,
        compute_dtype="float32",
    )


def run_of(folder: Path, **changes: Any) -> Run:
    return Run(output=str(folder), vae=str(TINY), sources=(), max_rejects=1.0, **changes)


def unit_of(number: int, unit_items: int, generation: int = 0) -> Unit:
    start = number * unit_items
    return Unit(
        name=unit_name("clips", SOURCE, start, start + unit_items, generation),
        source=SOURCE,
        format="manifest",
        generation=generation,
        start=start,
        stop=start + unit_items,
        size=10**9,
        etag="0123456789abcdef0123456789abcdef",
    )


def grow_output(folder: Path, items: int, units: int) -> None:
    """Add a tenth of the units in a generation of their own, unless a folder that was kept has grown before."""
    store, unit_items = Store(str(folder)), items // units
    if len(read_plan(store).columns) > 1:
        return
    numbers = range(units, units + units // 10)
    freeze_generation(store, [unit_of(n, unit_items, 1) for n in numbers], COLUMNS, 1)
    with ProcessPoolExecutor() as pool:
        parts = [range(start, min(start + 1000, numbers.stop)) for start in range(numbers.start, numbers.stop, 1000)]
        list(pool.map(partial(_copy_unit, folder, unit_items, generation=1), parts))


def remove_index(folder: Path, items: int, units: int) -> None:
    """Let the next phase make the whole index."""
    shutil.rmtree(folder / "index", ignore_errors=True)


def make_output(folder: Path, items: int, units: int) -> None:
    """Write the output of a job over a manifest that has encoded everything but not built the index."""
    unit_items = items // units
    store = Store(str(folder))
    recipe, card = recipe_of(unit_items), read_card(str(TINY))
    open_dataset(store, recipe, card, dict)
    freeze_generation(store, [unit_of(n, unit_items) for n in range(units)], COLUMNS, 0)
    first = unit_of(0, unit_items)
    with store.scratch() as scratch, ShardWriter(scratch, first, recipe, card, COLUMNS) as writer:
        for ordinal in range(unit_items):
            item = Item(ordinal=ordinal, key="", uri="", meta={"meta_aesthetic": ordinal / 7, "meta_license": "CC0"})
            bucket = BUCKETS[ordinal % len(BUCKETS)]
            facts = plain_facts(bucket.num_frames, bucket.height, bucket.width)
            if ordinal % 50 == 7:
                message = "the container ends early: moov atom not found"
                writer.add_reject(item, None, RejectedWindow(index=0, reject=Reject("probe", "damaged", message)))
            elif ordinal % 10 == 3:
                writer.add_skip(item, facts, Skip(index=0, reason="too_short"))
            else:
                writer.add_sample(item, facts, clip_of(bucket), {"latent": latent(ordinal, bucket, 8)}, "whole")
        writer.commit(store, {})
    with ProcessPoolExecutor() as pool:
        parts = [range(start, min(start + 1000, units)) for start in range(0, units, 1000)]
        list(pool.map(partial(_copy_unit, folder, unit_items), parts))


def _copy_unit(folder: Path, unit_items: int, numbers: range, generation: int = 0) -> None:
    store = Store(str(folder))
    first = unit_of(0, unit_items).name
    table = read_parquet(store.get(unit_metadata_path(first)))
    tar = (folder / table.schema.metadata[b"shard"].decode()).read_bytes()
    suffix = table.schema.metadata[b"shard"].decode().removeprefix(f"shards/{first}")
    has_shard = table["shard"].is_valid().to_pylist()
    # each process links its own copy
    own = folder / f".tar-{numbers.start // LINKS}-{os.getpid()}"
    if not own.exists():
        own.write_bytes(tar)
    for number in numbers:
        if number == 0:
            continue
        unit = unit_of(number, unit_items, generation)
        generator = random.Random(number)
        shard = f"shards/{unit.name}{suffix}"
        ordinals = range(unit.start, unit.start + unit_items)
        changed = {
            "id": [f"{generator.getrandbits(80):020x}" for _ in ordinals],
            "ordinal": list(ordinals),
            "key": [f"clips/{n // 1000:06d}/{n:09d}.mp4" for n in ordinals],
            "uri": [f"s3://videos/clips/{n // 1000:06d}/{n:09d}.mp4" for n in ordinals],
            "caption": [" ".join(generator.choices(WORDS, k=25)) for _ in ordinals],
            "latent_mean": [generator.gauss(0, 1) for _ in ordinals],
            "shard": [shard if found else None for found in has_shard],
        }
        copy = table
        for name, values in changed.items():
            place = copy.column_names.index(name)
            copy = copy.set_column(place, copy.schema.field(place), pa.array(values, copy.schema.field(place).type))
        metadata = table.schema.metadata | {b"unit": unit.name.encode(), b"shard": shard.encode()}
        os.link(own, folder / shard)
        (folder / unit_metadata_path(unit.name)).write_bytes(write_parquet(copy.replace_schema_metadata(metadata)))
    own.unlink()


def made_up_listing(items: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of a folder as a store lists them, a thousand in each folder below it."""
    for n in range(items):
        yield f"{n // 1000:06d}/{n:09d}.mp4", {"size": 1_000_000 + n % 1000, "mtime": 1.7e9 + n / 7}


# The phases. Each is called in a process of its own.


def plan_manifest(folder: Path, items: int, units: int, suffix: str) -> None:
    sources = find_sources([str(folder / f"manifest.{suffix}")])
    with tempfile.TemporaryDirectory(dir=folder) as output:
        assert len(freeze_plan(Store(output), sources, recipe_of(items // units)).units) == units


def plan_folder(folder: Path, items: int, units: int) -> None:
    output = folder / "planned-folder"
    (folder / "media").mkdir(exist_ok=True)
    with mock.patch.object(folder_module, "iter_files", lambda *_: made_up_listing(items)):
        sources = find_sources([str(folder / "media")])
    assert len(freeze_plan(Store(str(output)), sources, recipe_of(items // units)).units) == units


def plan_tars(folder: Path, items: int, units: int) -> None:
    sources = find_sources([str(folder / "tars" / "*.tar")])
    with tempfile.TemporaryDirectory(dir=folder) as output:
        assert len(freeze_plan(Store(output), sources, recipe_of(items // units)).units) == units


def resume(folder: Path, items: int, units: int) -> None:
    """What a job does before it encodes: the plan, and what is committed."""
    store = Store(str(folder))
    assert not missing_units(store, read_plan(store))


def finish(folder: Path, items: int, units: int, map_tasks: MapTasks = map_in_process) -> None:
    store = Store(str(folder))
    plan = read_plan(store)
    index = complete_index(store, plan, clip_rows(plan, recipe_of(items // units)), map_tasks)
    remove_orphans(store, {unit.name for unit in plan.units}, index)
    assert index.num_samples + index.num_skips + index.num_rejects == len(plan.units) * (items // units)


def summary(folder: Path, items: int, units: int) -> None:
    store, run = Store(str(folder)), run_of(folder, cpus=1)
    index = newest_index(store)
    assert index is not None
    progress = Progress(run, [], RunLog(store, "bench"), lambda line: None)
    assert (
        summarize(
            store, index, run, [], recipe=recipe_of(items // units), units=units, progress=progress
        ).counts.windows
        == items
    )


def verification(folder: Path, items: int, units: int, map_tasks: MapTasks = map_in_process) -> None:
    verdict = verify(Store(str(folder)), lambda line: None, map_tasks)
    assert not verdict.problems, verdict.problems[:3]


def on_ray(phase: Callable[..., None], folder: Path, items: int, units: int, workers: int) -> dict[str, float]:
    """Run a phase with a cluster that has one CPU for each worker. The driver and Ray's own processes use these CPUs too."""
    import ray

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])  # the threads of one worker could use all CPUs
    ray.init(address="local", num_cpus=workers, include_dashboard=False)
    list(map_on_ray("local", _nothing, range(2 * workers)))  # starts the workers, and imports what the driver needs
    memory_kib, started_s, cpu_s = _status_kib("VmRSS"), time.perf_counter(), time.process_time()
    phase(folder, items, units, partial(map_on_ray, "local"))
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "MB": (_status_kib("VmHWM") - memory_kib) / 1024,
    }


def _nothing(item: int) -> dict[str, Any]:
    return {}


def hand_over(folder: Path, items: int, units: int) -> dict[str, float]:
    """Every unit to Ray, and the first reports back from an encoder that does nothing."""

    class IdleActor:
        def __init__(self, maker: EncoderMaker) -> None:
            pass

        def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for task in unpack(batch["tasks"][0]):
                yield {"report": [json.dumps(UnitReport(unit=task.unit.name, outcome="already").to_json())]}

    run = run_of(folder, actors=1, cpus=1)
    plan = read_plan(Store(str(folder)))
    with mock.patch.object(ray_module, "EncoderActor", IdleActor):
        connect_to_ray(run)
        started_s = time.perf_counter()
        tasks = in_order(plan.units, {}, "job")
        settings = EncoderSettings(recipe=recipe_of(1), run=run, columns=tuple(plan.columns), source_urls={}, job="job")
        maker = EncoderMaker(run=run, job="job", make=partial(ShardEncoder, settings))
        reports = ray_module.encode_on_ray(tasks, maker, Heartbeats())
        next(reports)
        first_s = time.perf_counter()
        for done, _ in enumerate(reports, 1):
            if done == REPORTS:
                break
        return {"seconds": first_s - started_s, "units per s then": done / (time.perf_counter() - first_s)}


PHASES: dict[str, Callable[..., Any]] = {
    "plan a Parquet manifest": partial(plan_manifest, suffix="parquet"),
    "plan a JSONL manifest": partial(plan_manifest, suffix="jsonl"),
    "plan a CSV manifest": partial(plan_manifest, suffix="csv"),
    "plan a folder": plan_folder,
    "plan a folder again": plan_folder,
    "plan tars": plan_tars,
    "hand over to Ray": hand_over,
    "resume": resume,
    "finish": finish,
    "finish, 1 worker on Ray": partial(on_ray, finish, workers=1),
    "finish, 2 workers on Ray": partial(on_ray, finish, workers=2),
    "summarize": summary,
    "verify": verification,
    "verify, 1 worker on Ray": partial(on_ray, verification, workers=1),
    "verify, 2 workers on Ray": partial(on_ray, verification, workers=2),
    "finish, grown by a tenth": finish,
}

PREPARATIONS: dict[str, Callable[[Path, int, int], None]] = {
    "finish": remove_index,
    "finish, 1 worker on Ray": remove_index,
    "finish, 2 workers on Ray": remove_index,
    "finish, grown by a tenth": grow_output,
}
"""Work before a phase that is not measured."""


def make_sources(folder: Path, items: int, units: int) -> None:
    """The manifests and tars that are planned: a million rows are 150 MB of text; tars are holes."""
    schema = pa.schema([("path", pa.string()), ("caption", pa.string()), ("aesthetic", pa.float64())])
    with (
        pq.ParquetWriter(folder / "manifest.parquet", schema) as parquet,
        (folder / "manifest.csv").open("w") as csv,
        (folder / "manifest.jsonl").open("w") as jsonl,
    ):
        csv.write("path,caption,aesthetic\n")
        for start in range(0, items, 10_000):
            generator = random.Random(start)
            rows = [
                {"path": f"clips/{n:09d}.mp4", "caption": " ".join(generator.choices(WORDS, k=25)), "aesthetic": n / 7}
                for n in range(start, min(start + 10_000, items))
            ]
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema))
            csv.writelines(f"{row['path']},{row['caption']},{row['aesthetic']}\n" for row in rows)
            jsonl.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "tars").mkdir()
    for n in range(units):
        with (folder / "tars" / f"{n:06d}.tar").open("wb") as tar:
            tar.truncate(1_000_000 + n)


def measure(phase: str, folder: Path, items: int, units: int) -> dict[str, float]:
    """Run a phase in this process; its seconds, processor seconds, and MB of memory added at the peak."""
    before = _status_kib("VmRSS")
    started_s, cpu_s = time.perf_counter(), time.process_time()
    found = PHASES[phase](folder, items, units) or {}
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "MB": (_status_kib("VmHWM") - before) / 1024,
    } | found


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def bench(folder: Path, items: int, units: int, phases: list[str]) -> None:
    """Print the cost of each phase at one size."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # 15 by default, with which other programs would slow only the tasks
    if not folder.exists():
        folder.mkdir(parents=True)
        started_s = time.perf_counter()
        make_output(folder, items, units)
        make_sources(folder, items, units)
        print(f"made in {time.perf_counter() - started_s:.0f} s")
    print(f"\n{items} items in {units} units: seconds, of processors, these per million items, MB at the peak")
    for phase in phases:
        PREPARATIONS.get(phase, lambda *_: None)(folder, items, units)
        command = [sys.executable, "-m", "tests.bench.scale", "--phase", phase, "--folder", str(folder)]
        sizes = ["--items", str(items), "--units", str(units)]
        done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{phase:36s} failed: {done.stderr.splitlines()[-1:]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        seconds, cpu_s, mb = found.pop("seconds"), found.pop("cpu_s"), found.pop("MB")
        more = "  ".join(f"{name}: {value:.1f}" for name, value in found.items())
        print(f"{phase:26s} {seconds:8.1f} {cpu_s:8.1f} {cpu_s / items * 1e6:8.1f} {mb:8.0f}   {more}", flush=True)


def main() -> None:
    """Measure two sizes, one four times the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--units", type=int, nargs="+", default=[2_500, 10_000])
    parser.add_argument("--folder", type=Path, help="where to keep what is made up; a temporary folder by default")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(measure(arguments.phase, arguments.folder, arguments.items[0], arguments.units[0])))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp())
    try:
        for items, units in zip(arguments.items, arguments.units, strict=True):
            bench(folder / f"{items}-{units}", items, units, arguments.only)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
