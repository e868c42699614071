"""Encode sharded video datasets to latents. Run the same command again after any failure: it does what is left.

    python jobs/encode_dataset.py --source 's3://bucket/videos/{00000..00099}.tar' --output s3://bucket/latents \\
        --vae /models/opensora-vae-v1.2 --buckets 480x848x51,848x480x51
    python jobs/encode_dataset.py --config jobs/recipes/opensora-1.2-480p.yaml --source ... --dry-run
    ray job submit --working-dir . -- python jobs/encode_dataset.py ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import arguments as command_line
from jobs.arguments import Arguments
from jobs.config import print_config
from jobs.program import run_job, run_program, start
from pipeline.dry_run.calibrate import calibrate, measure_speed
from pipeline.dry_run.estimate import EncoderSpeeds, estimate, parse_speeds
from pipeline.dry_run.table import format_estimate
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Recipe, Run
from pipeline.report import page
from pipeline.run import encode
from pipeline.storage.checkpoint import local_checkpoint
from stvae.card import Card, read_card


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line and the configuration files that it names."""
    return command_line.parse_arguments(argv, __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; its exit code is 0 done, 1 failed, 2 wrong arguments or recipe, 3 too many rejects or 130 interrupted."""
    return run_program(lambda terminal: _run_command(parse_arguments(argv), terminal))


def _run_command(arguments: Arguments, terminal: Terminal) -> int:
    if arguments.print_config:
        if arguments.values.get("buckets"):
            arguments.recipe(vae_sha256="")  # refuses values that contradict each other
        terminal.say_lines(print_config(arguments.values).split("\n"))
        return 0
    run = arguments.run()
    card = read_card(local_checkpoint(run.vae), unlisted=run.unlisted_vae)
    recipe = arguments.recipe(card.sha256)
    if arguments.dry_run is not None:
        _dry_run(arguments, recipe, run, card, terminal)
        return 0
    if arguments.calibrate:
        calibrate(recipe, run, card, say=terminal.say)
        return 0
    return _encode(recipe, run, card, terminal)


def _encode(recipe: Recipe, run: Run, card: Card, terminal: Terminal) -> int:
    summary = run_job(partial(encode, recipe, run, card), terminal)
    terminal.say_lines([*summary.lines(), f"  report   {summary.output}/{page.PATH}"])
    return summary.exit_code


def _dry_run(arguments: Arguments, recipe: Recipe, run: Run, card: Card, terminal: Terminal) -> None:
    """Print an estimate of the job and its cost. The encoder's speed is given, measured now, or left open."""
    speeds: EncoderSpeeds | None = None
    speeds_origin = "at the speed given"
    if arguments.clips_per_s:
        speeds = parse_speeds(recipe, arguments.clips_per_s)
    max_items = None if arguments.dry_run == "all" else arguments.dry_run
    result = estimate(recipe, run, card, max_items, say=terminal.say)
    if speeds is None and arguments.calibrate and result.num_left:
        speeds = measure_speed(result.recipe, result.run, result.used_buckets, say=terminal.say)
        speeds_origin = f"as just measured on {'a GPU' if result.run.encoder_gpus else 'this CPU'}"
    terminal.say_lines(format_estimate(result, speeds, speeds_origin).split("\n"))


if __name__ == "__main__":
    start(main)
