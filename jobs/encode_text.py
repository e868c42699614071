"""Embed the captions of an output once. Run the same command again after any failure, and after the output has grown.

    python jobs/encode_text.py s3://bucket/latents --encoder /models/t5-v1_1-xxl --layer t5 --captions caption --gpus 1
    python jobs/encode_text.py s3://bucket/latents --encoder /models/Wan2.1-T2V-1.3B-Diffusers --layer umt5 \\
        --captions caption,long_caption --join s3://bucket/recaptioned.parquet --dry-run
    ray job submit --working-dir . -- python jobs/encode_text.py ...

Exit codes: 0 done, 1 failed, 2 wrong arguments or another recipe, 3 too many rejects, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser, add_flag, parse_given
from jobs.flags import FLAGS, Flag, derive_flags
from jobs.program import run_job, run_program, start
from pipeline.errors import ConfigError
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.progress.formatting import byte_size, number
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Run
from pipeline.report import page
from pipeline.run_text import encode_text, new_job_name, preview_text
from pipeline.storage.store import Store
from pipeline.text.encoder import EncoderOptions
from pipeline.text.planning import PlanPreview
from pipeline.text.settings import TextSettings

COMPUTED = ("encoder",)
"""Fields of ``TextRecipe`` that the job fills in."""
RUN_FIELDS = (
    *("local", "ray_address", "actors", "gpus", "cpus", "autotune", "allow_other_device"),
    *("max_rejects", "single_writer", "progress_timeout_s"),
)
"""Fields of ``Run`` that matter for strings."""
RECIPE_FLAGS = [flag for flag in derive_flags(TextRecipe) if flag.field not in COMPUTED]
RUN_FLAGS = [flag for flag in FLAGS.values() if flag.owner is Run and flag.field in RUN_FIELDS]
CHARACTERS_PER_TOKEN = 4
"""Average for English text, for estimates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """The parsed command line."""

    settings: TextSettings
    captions: tuple[str, ...]
    joins: tuple[str, ...]
    dry_run: bool


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line. ConfigError for wrong or missing flags."""
    parsed = _build_parser().parse_args(argv)
    captions = tuple(name.strip() for name in parsed.captions.split(","))
    if not all(captions) or len(set(captions)) < len(captions):
        raise ConfigError(f"--captions takes the names of columns, each one once, got '{parsed.captions}'")
    for flag, values in (("--encoder", [parsed.encoder]), ("--layer", [parsed.layer]), ("--join", parsed.join)):
        if not all(values):
            raise ConfigError(f"{flag} is empty; give a value, or check the variable that it comes from")
    settings = TextSettings(
        recipe=TextRecipe(encoder="", **_fields(parsed, RECIPE_FLAGS)),
        run=Run(output=parsed.output, vae="", sources=(), **_fields(parsed, RUN_FLAGS)),
        layer=parsed.layer,
        encoder=parsed.encoder,
        options=EncoderOptions(
            family=parsed.family,
            max_tokens=parsed.max_tokens,
            connector=parsed.connector,
            large=parsed.allow_large,
        ),
        job=new_job_name(),
    )
    return Arguments(settings=settings, captions=captions, joins=tuple(parsed.join), dry_run=parsed.dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_program(lambda terminal: _run_command(parse_arguments(argv), terminal))


def _run_command(arguments: Arguments, terminal: Terminal) -> int:
    settings, run = arguments.settings, arguments.settings.run
    if arguments.dry_run:
        terminal.say_lines(_preview_lines(preview_text(settings, arguments.captions, arguments.joins)))
        return 0
    summary = run_job(partial(encode_text, settings, arguments.captions, arguments.joins), terminal)
    terminal.say_lines([*summary.lines(), f"  report   {Store(run.output).url}/{page.PATH}"])
    return summary.exit_code


def _preview_lines(preview: PlanPreview) -> Iterator[str]:
    tokens = preview.new_characters // CHARACTERS_PER_TOKEN
    distinct = number(preview.distinct, "distinct string")
    yield f"{number(preview.strings, 'caption')} in the output, {distinct} with those of the layer"
    yield f"{number(preview.new, 'string')} to embed in {number(preview.units, 'unit')}, about {number(tokens, 'token')}"
    yield f"one string takes at most {byte_size(preview.row_bytes)}, all new ones at most " + byte_size(
        preview.new * preview.row_bytes
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("output", metavar="URL", help="folder with the output of an encode job, finished or not")
    add = parser.add_argument
    add("--encoder", required=True, metavar="NAME|PATH|URL", help="folder of the text encoder, or 'demo'")
    add("--layer", required=True, metavar="NAME", help="name of the layer, such as t5; it lies in layers/NAME")
    add("--captions", required=True, metavar="COLUMN,...", help="columns with captions, of the output or of tables")
    add("--join", action="append", default=[], metavar="URL", help="Parquet file with columns by id; may be repeated")
    add("--dry-run", action="store_true", help="do not embed; count the strings")
    encoder = parser.add_argument_group("encoder (a part of the recipe)")
    encoder.add_argument("--family", metavar="NAME", help="family of the encoder (default: from its files)")
    encoder.add_argument("--max-tokens", type=int, metavar="N", help="longest string (default: that of the family)")
    encoder.add_argument(
        "--connector", metavar="PATH", help="folder of LTX-2's connector; embeddings are then taken after it"
    )
    encoder.add_argument("--allow-large", action="store_true", help="allow embeddings too large to be sensible")
    for title, flags in (
        ("recipe (changes the layer; a layer keeps to one)", RECIPE_FLAGS),
        ("run (free to change from one run to the next)", RUN_FLAGS),
    ):
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    return parser


def _fields(parsed: argparse.Namespace, flags: Sequence[Flag]) -> dict[str, Any]:
    """The fields that were given, or that an environment variable gives."""
    fields = {}
    for flag in flags:
        value = parse_given(flag, getattr(parsed, flag.name)) if flag.name in parsed else None
        if value is None and flag.setting.environment:
            value = os.environ.get(flag.setting.environment) or None
        if value is not None:
            fields[flag.field] = value
    return fields


if __name__ == "__main__":
    start(main)
