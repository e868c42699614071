"""Take over latents that another trainer's preprocessing has made. Run the same command again after any failure.

    python jobs/import_dataset.py /data/clips --from ltx --vae /models/LTX-2/vae --output s3://bucket/latents
    python jobs/import_dataset.py /data/parquet --from fastvideo --vae /models/Wan2.1/vae --output latents --local
    python jobs/import_dataset.py /data/cache --from automodel --vae /models/Wan2.1/vae --output latents --local

Exit codes: 0 done, 1 failed, 2 wrong arguments or another recipe, 3 too many rejects, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser
from jobs.program import run_job, run_program, start
from pipeline.errors import ConfigError
from pipeline.imports.registry import IMPORT_FORMATS
from pipeline.imports.settings import ImportOptions
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Run
from pipeline.report import page
from pipeline.run_import import import_latents
from pipeline.storage.checkpoint import local_checkpoint
from stvae.card import read_card


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """The parsed command line."""

    options: ImportOptions
    run: Run


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line. ConfigError for wrong or missing flags."""
    parsed = _build_parser().parse_args(argv)
    if parsed.unit_clips < 1:
        raise ConfigError(f"--unit-clips must be positive, got {parsed.unit_clips}")
    options = ImportOptions(
        source_format=parsed.source_format,
        latents=parsed.latents,
        store=parsed.store,
        dtype=parsed.dtype,
        unit_clips=parsed.unit_clips,
        captions=parsed.captions,
    )
    run = Run(
        sources=(parsed.source,),
        output=parsed.output,
        vae=parsed.vae,
        unlisted_vae=parsed.unlisted_vae,
        local=parsed.local,
        ray_address=parsed.ray_address,
        actors=parsed.actors,
        gpus=0.0,
        cpus=1,
        max_rejects=parsed.max_rejects,
        single_writer=parsed.single_writer,
    )
    return Arguments(options=options, run=run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_program(lambda terminal: _run_command(parse_arguments(argv), terminal))


def _run_command(arguments: Arguments, terminal: Terminal) -> int:
    run = arguments.run
    card = read_card(local_checkpoint(run.vae), unlisted=run.unlisted_vae)
    summary = run_job(partial(import_latents, arguments.options, run, card), terminal)
    terminal.say_lines([*summary.lines(), f"  report   {summary.output}/{page.PATH}"])
    return summary.exit_code


def _build_parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"    {name:<10} {one.writer}" for name, one in IMPORT_FORMATS.items())
    parser = Parser(
        description=f"{__doc__}\nFormats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder or prefix that the trainer's preprocessing wrote")
    add: Any = parser.add_argument
    add("--from", dest="source_format", required=True, choices=list(IMPORT_FORMATS), help="format of the source")
    add("--output", required=True, metavar="URL", help="folder for the shards and their metadata")
    add("--vae", required=True, metavar="NAME|PATH|URL", help="VAE that made the latents; nothing can verify that")
    add("--unlisted-vae", action="store_true", help="accept a VAE whose class is not in the table of stvae/README.md")
    add(
        "--latents",
        choices=["raw", "normalized"],
        help="form of the latents in the source (default: as the format has them)",
    )
    add(
        "--store", choices=["mean", "sample"], help="part of the posterior that the latents are (default: the format's)"
    )
    add(
        "--dtype",
        choices=["float16", "bfloat16", "float32"],
        help="type to store (default: float16, and float32 from fastvideo, which loses nothing)",
    )
    add(
        "--captions",
        metavar="URL",
        help="table (.json, .jsonl, .csv) with captions by the path of the video, such as the one that LTX-2's trainer read",
    )
    add("--unit-clips", type=int, default=128, metavar="N", help="samples per output shard (default: 128)")
    add("--local", action="store_true", help="import in this process, without Ray")
    add(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        metavar="ADDRESS",
        help="Ray cluster to join; local starts one on this machine (default: RAY_ADDRESS, or local)",
    )
    add("--actors", type=int, metavar="N", help="importers at the same time, with one CPU each (default: one per node)")
    add(
        "--max-rejects",
        type=float,
        default=0.05,
        metavar="N",
        help="share of rejects above which the job fails (default: 0.05)",
    )
    add("--single-writer", action="store_true", help="promise that no other job writes to the output")
    return parser


if __name__ == "__main__":
    start(main)
