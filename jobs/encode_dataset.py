"""Encode sharded video datasets to latents. Run it again after anything: it finishes what is left.

    python jobs/encode_dataset.py --source 's3://bucket/videos/{00000..00099}.tar' --output s3://bucket/latents \\
        --codec /models/opensora-vae-v1.2 --buckets 480x848x51,848x480x51
    ray job submit --working-dir . -- python jobs/encode_dataset.py ...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.calibrate import calibrate
from pipeline.dataset import default_threads
from pipeline.errors import USER_ERRORS, ConfigError, exit_code
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.run import encode
from pipeline.terminal import Terminal
from stvae.card import read_card


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="[NAME=]URL",
        help="tar, manifest (.parquet, .csv, .jsonl) or folder of videos; {00..99} and * expand; may be repeated",
    )
    data.add_argument("--output", required=True, metavar="URL")

    recipe = parser.add_argument_group("recipe (changes the output; an output keeps to one)")
    recipe.add_argument("--codec", required=True, metavar="NAME|PATH|URL", help="checkpoint folder, or 'demo'")
    recipe.add_argument(
        "--buckets", required=True, metavar="HxWxT,...", help="clip sizes, for example 480x848x51,848x480x51"
    )
    recipe.add_argument(
        "--micro-batch", default="1", metavar="N,...", help="clips per call of the codec, for all or for each bucket"
    )
    recipe.add_argument("--fps", default="native", help="frames per second by presentation time, or 'native' (default)")
    recipe.add_argument("--windows", choices=["first", "all", "stride"], default="first")
    recipe.add_argument("--stride-frames", type=int, help="frames between window starts, with --windows stride")
    recipe.add_argument(
        "--remainder", choices=["skip", "shorten"], default="skip", help="frames that do not fill a bucket"
    )
    recipe.add_argument("--max-upscale", type=float, default=1.0, help="largest enlargement (default 1: none)")
    recipe.add_argument(
        "--max-repeats", type=float, default=0.25, help="largest share of repeated frames (default 0.25)"
    )
    recipe.add_argument("--resize", choices=["bicubic", "opensora"], default="bicubic")
    recipe.add_argument("--store", choices=["moments", "mean"], default="moments")
    recipe.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], default="float16", help="of the stored latents"
    )
    recipe.add_argument(
        "--compute-dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the codec (default auto: bfloat16 with --gpus, else float32; an output keeps what it was begun with)",
    )
    recipe.add_argument("--compile", action="store_true", help="put the encoder through torch.compile")
    recipe.add_argument(
        "--conditioning",
        choices=["none", "first", "first-last"],
        default="none",
        help="frames of every clip to encode once more, alone, for image-to-video",
    )
    recipe.add_argument("--spatial-posterior", choices=["mode", "sample"], default="mode")
    recipe.add_argument("--decoder", choices=["pyav", "decord"], default="pyav")
    recipe.add_argument("--path-column", help="of manifests (default: path, url, uri, video or file)")
    recipe.add_argument("--caption-column", help="of manifests (default: caption or text)")
    recipe.add_argument(
        "--column", action="append", default=[], metavar="NAME:TYPE", help="field of JSON beside items to make a column"
    )
    recipe.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="host with a private address that manifests may name; may be repeated",
    )
    recipe.add_argument(
        "--unit-clips", type=int, default=128, help="items per shard, of folders and manifests (default 128)"
    )

    run = parser.add_argument_group("run (free to change from one run to the next)")
    run.add_argument("--local", action="store_true", help="in this process, without Ray")
    run.add_argument("--actors", type=int, default=1, help="most encoders at once, one per GPU (default 1)")
    run.add_argument("--gpus", type=float, default=0.0, help="GPUs per encoder (default 0: on the CPU)")
    run.add_argument("--cpus", type=int, default=default_threads(), help="CPUs per encoder (default: all)")
    run.add_argument(
        "--calibrate", action="store_true", help="encode nothing; try sizes of micro-batch and propose the best"
    )
    run.add_argument("--max-rejects", type=float, default=0.05, help="stop above this share of rejects (default 0.05)")
    run.add_argument(
        "--retry-rejects",
        metavar="KIND",
        help="try rejects of a finished output again: a kind from its summary, or all",
    )
    run.add_argument("--decode-timeout-s", type=float, default=60.0)
    run.add_argument(
        "--single-writer", action="store_true", help="for stores that cannot create a file only if it is absent"
    )
    run.add_argument(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS", "local"),
        help="default: RAY_ADDRESS, else a local cluster",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code says how it ended (0 done, 1 failed, 2 arguments or recipe, 3 rejects, 130 interrupted)."""
    arguments = parse_arguments(argv)
    terminal = Terminal(sys.stdout)
    try:
        card = read_card(arguments.codec)
        if arguments.calibrate:
            calibrate(_recipe(arguments, card.sha256), _run(arguments), card, say=terminal.say)
            return 0
        show = terminal.show if terminal.rewrites else None
        summary = encode(_recipe(arguments, card.sha256), _run(arguments), card, say=terminal.say, show=show)
    except USER_ERRORS as error:
        terminal.say(f"error: {error}")
        return exit_code(error)
    except KeyboardInterrupt:
        terminal.say("interrupted; run the same command again to go on")
        return 130
    terminal.say(str(summary))
    return summary.exit_code


def _recipe(arguments: argparse.Namespace, codec: str) -> Recipe:
    buckets = tuple(Bucket.parse(text) for text in arguments.buckets.split(","))
    sizes = [_number(text, "--micro-batch") for text in arguments.micro_batch.split(",")]
    return Recipe(
        codec=codec,
        buckets=buckets,
        micro_batch=tuple(int(n) for n in (sizes * len(buckets) if len(sizes) == 1 else sizes)),
        fps=None if arguments.fps == "native" else _number(arguments.fps, "--fps"),
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
        columns=tuple(arguments.column),
        private_hosts=tuple(arguments.allow_host),
        unit_clips=arguments.unit_clips,
    )


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{flag} takes numbers, got '{text}'") from None


def _run(arguments: argparse.Namespace) -> Run:
    return Run(
        output=arguments.output,
        codec=arguments.codec,
        sources=tuple(arguments.source),
        local=arguments.local,
        ray_address=arguments.ray_address,
        actors=arguments.actors,
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        decode_timeout_s=arguments.decode_timeout_s,
        max_rejects=arguments.max_rejects,
        retry_rejects=arguments.retry_rejects,
        single_writer=arguments.single_writer,
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # how `ray job stop` and schedulers ask a job to end
    sys.exit(main())
