"""Check that an output is intact: every byte of its shards, index and layers, and, with --sample, samples encoded again.

    python jobs/verify_dataset.py s3://bucket/latents
    python jobs/verify_dataset.py s3://bucket/latents --sample 20 --vae /models/opensora-vae-v1.2
    ray job submit --working-dir . -- python jobs/verify_dataset.py s3://bucket/latents   # on all machines of a cluster

Exit codes: 0 intact, 1 problems (listed here and in verify.json in the output), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser, add_task_flags
from pipeline.errors import USER_ERRORS, ConfigError, exit_code
from pipeline.executor.ray_map import map_tasks_at
from pipeline.output.dataset import require_listed_dataset
from pipeline.output.edits.verify_edits import verify_edits
from pipeline.output.layers.verify_layers import verify_layers
from pipeline.output.verify import PATH, Verdict, verify
from pipeline.progress.formatting import byte_size, number
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Run
from pipeline.setting import available_cpus
from pipeline.storage.store import Store
from pipeline.visible import make_foreign_text_visible

MAX_LISTED_PROBLEMS = 20
MAX_LISTED_STRAYS = 10


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="URL", help="folder with the output of an encode job")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="number of samples to encode again (default 0)"
    )
    parser.add_argument("--vae", metavar="NAME|PATH|URL", help="the VAE of the output, for --sample")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="location of a source that was named or has moved; may be repeated",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        default=0.999,
        help="lowest accepted cosine similarity of a sample encoded again (default 0.999)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the choice of samples (default 0)")
    parser.add_argument("--gpus", type=float, default=0.0, help="1 encodes on a GPU (default 0: on the CPU)")
    parser.add_argument(
        "--cpus", type=int, default=available_cpus(), help="threads and decoder processes (default: all)"
    )
    add_task_flags(parser, verb="check", tasks="check shards and index")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Verify the output, compare samples if asked to, print the result; returns the exit code."""
    terminal = Terminal(sys.stdout)
    try:
        arguments = parse_arguments(argv)
        if arguments.sample and not arguments.vae:
            raise ConfigError("--sample encodes samples again, which needs --vae")
        store = Store(arguments.output)
        require_listed_dataset(store)
        map_tasks = map_tasks_at(None if arguments.local else arguments.ray_address)
        verdict = verify(store, terminal.say, map_tasks)
        verify_edits(store, verdict)
        verify_layers(store, verdict, terminal.say, map_tasks)
        if arguments.sample:
            _compare_samples(arguments, verdict, terminal)
        verdict.save(store)
    except USER_ERRORS as error:
        terminal.say_error(error)
        return exit_code(error)
    terminal.say_lines(_verdict_lines(verdict, store.url))
    return verdict.exit_code


def _compare_samples(arguments: argparse.Namespace, verdict: Verdict, terminal: Terminal) -> None:
    from pipeline.report.int8_loss import describe_loss, describe_psnr, mean_loss_db
    from pipeline.report.round_trip import compare_samples

    run = Run(
        output=arguments.output,
        vae=arguments.vae,
        sources=tuple(arguments.source),
        gpus=arguments.gpus,
        cpus=arguments.cpus,
    )
    for sample in compare_samples(run, arguments.sample, arguments.seed):
        verdict.compared.append(sample)
        terminal.say(
            f"{sample.id}  max difference {sample.max_abs:.2g}, mean {sample.mean_abs:.2g}  cosine {sample.cosine:.6f}  "
            f"PSNR {describe_psnr(sample.psnr_db, sample.float16_psnr_db)}  {sample.key[:60]}"
        )
        if sample.cosine < arguments.min_cosine:
            verdict.problems.append(
                (sample.id, f"encoded again, its cosine similarity to the stored latent is {sample.cosine:.4f}")
            )
    loss_db = mean_loss_db((sample.psnr_db, sample.float16_psnr_db) for sample in verdict.compared)
    if loss_db is not None:
        terminal.say(describe_loss(loss_db))


def _verdict_lines(verdict: Verdict, url: str) -> Iterator[str]:
    num_problems = len(verdict.problems)
    yield (
        f"{url}: {number(verdict.units, 'unit')}, {number(verdict.shards, 'shard')}, {number(verdict.samples, 'sample')}, "
        f"{number(verdict.removed) + ' of them removed, ' if verdict.removed else ''}"
        f"{number(verdict.strings, 'string') + ' in layers, ' if verdict.strings else ''}"
        f"{byte_size(verdict.size_bytes)} read; {number(num_problems, 'problem') if num_problems else 'no problems'}"
    )
    if verdict.int8_errors is not None:
        errors = verdict.int8_errors
        yield f"  int8 differs from what the encoder gave by {errors.mean:.2g} in the mean, {errors.largest:.2g} at most"
    for place, problem in verdict.problems[:MAX_LISTED_PROBLEMS]:
        yield f"  {place}: {problem}"
    if num_problems > MAX_LISTED_PROBLEMS:
        yield f"  ... {num_problems - MAX_LISTED_PROBLEMS} more in {PATH}"
    if verdict.strays:
        yield f"  not written by Latentmill, and passed over: {', '.join(map(ascii, verdict.strays[:MAX_LISTED_STRAYS]))}"
    if len(verdict.strays) > MAX_LISTED_STRAYS:
        yield f"  ... {len(verdict.strays) - MAX_LISTED_STRAYS} more in {PATH}"


if __name__ == "__main__":
    make_foreign_text_visible()
    sys.exit(main())
