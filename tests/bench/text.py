"""Embed the captions of a large made-up output: ``python -m tests.bench.text`` (shorter: ``--captions 10000``).

A share of the captions are duplicates. The bench checks that every distinct string has one embedding, also after the output
has grown, and prints time and memory of the driver: planning in a process of its own, for a quarter of the captions and for
all of them. Planning spills early here, so that both exceed what is held in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.layers.known_layers import layer_store
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.output.plan import freeze_generation, read_plan
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.recipe import Run
from pipeline.sources.units import Unit
from pipeline.storage.parquet import write_parquet
from pipeline.storage.store import Store
from pipeline.text.encoder import EncoderOptions
from pipeline.text.settings import TextSettings
from tests.support.captioned_set import COLUMNS, Captions, add_unit
from tests.support.paths import ROOT

UNIT_SAMPLES = 1000
WORDS = (
    "a the wide slow bright shot of river city woman dog street rain over camera moves through night car sea".split()
)


def caption(number: int) -> str:
    """A sentence of its own for each number, of 12 words and a number, like those of captioning models."""
    return " ".join(WORDS[(number * 7 + place * (number % 11 + 1)) % len(WORDS)] for place in range(12)) + f" {number}."


def add_samples(folder: Path, captions: list[str]) -> None:
    """Add samples to an output in units, as committed by a job that still runs. All share the latents of one shard."""
    store = Store(str(folder))
    if not read_plan(store).units:
        add_unit(folder, [Captions("template")] * UNIT_SAMPLES)
    plan = read_plan(store)
    template = pq.read_table(folder / unit_metadata_path(plan.units[0].name))
    start, units = sum(unit.stop or 0 for unit in plan.units[-1:]), []
    for first in range(0, len(captions), UNIT_SAMPLES):
        part = captions[first : first + UNIT_SAMPLES]
        unit = Unit(
            name=f"u{start + first:09d}",
            source="numbers",
            format="manifest",
            generation=len(plan.columns),
            start=start + first,
            stop=start + first + len(part),
        )
        units.append(unit)
        ids = [f"{ordinal * 2654435761 % 2**64:020x}" for ordinal in unit.ordinals]
        rows = template.slice(0, len(part))
        for name, values in (("id", ids), ("caption", part), ("ordinal", list(unit.ordinals))):
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))
        store.put_new(unit_metadata_path(unit.name), write_parquet(rows))
    freeze_generation(store, units, COLUMNS, len(plan.columns))


def settings_of(folder: Path) -> TextSettings:
    return TextSettings(
        recipe=TextRecipe(encoder="", unit_strings=2000),
        run=Run(output=str(folder), vae="", sources=(), local=True, cpus=1),
        layer="t5",
        encoder="demo",
        options=EncoderOptions(),
        job="bench",
    )


def peak_mb() -> float:
    """Largest amount of memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan_only(folder: Path) -> None:
    """Plan the layer without writing it, and print what that took."""
    from pipeline import run_text
    from pipeline.text import sorted_rows

    sorted_rows.RUN_BYTES = 1 << 20
    before_mb, started_s = peak_mb(), time.perf_counter()
    preview = run_text.preview_text(settings_of(folder), ("caption",), ())
    result = preview._asdict() | {"seconds": time.perf_counter() - started_s, "mb": peak_mb() - before_mb}
    print(json.dumps(result))


def embed(folder: Path) -> None:
    """Embed what is missing, and print the numbers of the summary."""
    from pipeline.run_text import encode_text

    started_s = time.perf_counter()
    summary = encode_text(settings_of(folder), ("caption",), (), say=lambda line: print(line, file=sys.stderr))
    print(json.dumps({"now": summary.embedded_now, "seconds": time.perf_counter() - started_s}))


def in_process(step: str, folder: Path) -> dict[str, Any]:
    """What a step in a process of its own prints."""
    command = [sys.executable, "-m", "tests.bench.text", "--step", step, str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def check(folder: Path, captions: list[str]) -> int:
    """Check that the layer has each distinct caption, and the empty one, once; the number of its rows."""
    paths = layer_store(Store(str(folder)), "t5").list_files("metadata")
    ids = [id for path in paths for id in pq.read_table(folder / "layers/t5" / path)["text_id"].to_pylist()]
    assert len(ids) == len(set(ids)), "a string was embedded twice"
    assert len(ids) == len({"", "template", *captions}), "a string is missing"
    return len(ids)


def main() -> None:
    """Print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100_000, help="number of samples (default 100,000)")
    parser.add_argument(
        "--duplicates", type=float, default=0.2, help="share of samples that repeat a caption (default 0.2)"
    )
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        {"plan": plan_only, "embed": embed}[arguments.step[0]](Path(arguments.step[1]))
        return
    distinct = round(arguments.captions * (1 - arguments.duplicates))
    captions = [caption(number % distinct) for number in range(arguments.captions)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "out")
        quarter = len(captions) // 4
        for part in (captions[:quarter], captions[quarter:]):
            add_samples(folder, part)
            plan = in_process("plan", folder)
            print(
                f"planned {plan['strings']:,} captions, {plan['distinct']:,} distinct, in {plan['seconds']:.1f} s with "
                f"{plan['mb']:.0f} MB"
            )
        made = in_process("embed", folder)
        rows = check(folder, captions)
        print(f"embedded {made['now']:,} strings in {made['seconds']:.0f} s; {rows:,} rows, none twice")
        grown = [caption(distinct // 2 + number) for number in range(distinct)]
        add_samples(folder, grown)
        made = in_process("embed", folder)
        rows = check(folder, captions + grown)
        print(f"after the output has grown: embedded {made['now']:,} strings in {made['seconds']:.0f} s; {rows:,} rows")


if __name__ == "__main__":
    main()
