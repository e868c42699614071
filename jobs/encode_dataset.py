"""Encode sharded video datasets to latents. Run it again after anything: it finishes what is left.

    python jobs/encode_dataset.py --source 's3://bucket/videos/{00000..00099}.tar' --output s3://bucket/latents \\
        --vae /models/opensora-vae-v1.2 --buckets 480x848x51,848x480x51
    python jobs/encode_dataset.py --config jobs/recipes/opensora-1.2-480p.yaml --source ... --dry-run
    ray job submit --working-dir . -- python jobs/encode_dataset.py ...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import config
from pipeline.dry_run.calibrate import calibrate, measure_speed
from pipeline.dry_run.estimate import Speeds, estimate, speeds_given
from pipeline.dry_run.table import bill
from pipeline.environment import default_threads
from pipeline.errors import USER_ERRORS, exit_code
from pipeline.executor.ray_cluster import disconnect_from_ray, report_missing_nodes
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Recipe, Run
from pipeline.report import page
from pipeline.run import encode
from stvae.card import Card, read_card


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the configuration files that it names below it."""
    return config.parse_arguments(argv, __doc__)


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code says how it ended (0 done, 1 failed, 2 arguments or recipe, 3 rejects, 130 interrupted)."""
    terminal = Terminal(sys.stdout)
    try:
        arguments = parse_arguments(argv)
        if arguments.print_config:
            if arguments.buckets:
                _recipe(arguments, vae="")  # refuses what contradicts itself
            terminal.say(config.print_config(arguments))
            return 0
        card = read_card(arguments.vae)
        recipe, run = _recipe(arguments, card.sha256), _run(arguments)
        if arguments.dry_run is not None:
            _dry_run(arguments, recipe, run, card, terminal.say)
            return 0
        if arguments.calibrate:
            with report_missing_nodes(run, say=terminal.say):
                calibrate(recipe, run, card, say=terminal.say)
            return 0
        return _encode(recipe, run, card, terminal)
    except USER_ERRORS as error:
        disconnect_from_ray()
        terminal.say(f"error: {error}")
        return exit_code(error)
    except KeyboardInterrupt:
        terminal.say("interrupted; run the same command again to go on")
        return 130


def _encode(recipe: Recipe, run: Run, card: Card, terminal: Terminal) -> int:
    show = terminal.show if terminal.rewrites else None
    try:
        with report_missing_nodes(run, say=terminal.say):
            summary = encode(recipe, run, card, say=terminal.say, show=show)
    except SystemExit:  # how Ray answers SIGTERM once it is connected
        raise KeyboardInterrupt from None
    disconnect_from_ray()
    terminal.say(f"{summary}\n  report   {summary.output}/{page.PATH}")
    return summary.exit_code


def _dry_run(arguments: argparse.Namespace, recipe: Recipe, run: Run, card: Card, say: Callable[[str], None]) -> None:
    """Print what the job would do and cost; the speed of an encoder is given, measured here or left open."""
    speeds: Speeds | None = None
    speeds_are = "at the speed given"
    if arguments.clips_per_s:
        speeds = speeds_given(recipe, arguments.clips_per_s)
    found = estimate(recipe, run, card, None if arguments.dry_run == "all" else arguments.dry_run, say=say)
    if speeds is None and arguments.calibrate and found.num_left:
        speeds = measure_speed(found.recipe, run, found.used_buckets, say=say)
        speeds_are = f"as just measured on {'a GPU' if run.gpus else 'this CPU'}"
    say(bill(found, speeds, speeds_are))


def _recipe(arguments: argparse.Namespace, vae: str) -> Recipe:
    sizes = arguments.micro_batch
    return Recipe(
        vae=vae,
        buckets=arguments.buckets,
        micro_batch=sizes * len(arguments.buckets) if len(sizes) == 1 else sizes,
        fps=None if arguments.fps == "native" else arguments.fps,
        windows=arguments.windows,
        stride_frames=arguments.stride_frames,
        remainder=arguments.remainder,
        max_upscale=arguments.max_upscale,
        max_repeats=arguments.max_repeats,
        resize=arguments.resize,
        store=arguments.store,
        dtype=arguments.dtype,
        compute_dtype=arguments.compute_dtype,
        compile=arguments.compile,
        conditioning=arguments.conditioning,
        spatial_posterior=arguments.spatial_posterior,
        decoder=arguments.decoder,
        path_column=arguments.path_column,
        caption_column=arguments.caption_column,
        columns=arguments.column,
        private_hosts=arguments.allow_host,
        unit_clips=arguments.unit_clips,
    )


def _run(arguments: argparse.Namespace) -> Run:
    return Run(
        output=arguments.output,
        vae=arguments.vae,
        sources=arguments.source,
        local=arguments.local,
        ray_address=arguments.ray_address or os.environ.get("RAY_ADDRESS", "local"),
        actors=arguments.actors,
        gpus=arguments.gpus,
        cpus=default_threads() if arguments.cpus == "all" else arguments.cpus,
        decode_timeout_s=arguments.decode_timeout_s,
        max_rejects=arguments.max_rejects,
        retry_rejects=arguments.retry_rejects,
        single_writer=arguments.single_writer,
        progress_timeout_s=arguments.progress_timeout_s,
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # how `ray job stop` and schedulers ask a job to end
    sys.exit(main())
