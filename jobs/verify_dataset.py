"""Check that an output is intact: every byte of its shards and its index, and samples that are encoded again.

    python jobs/verify_dataset.py s3://bucket/latents
    python jobs/verify_dataset.py s3://bucket/latents --sample 20 --vae /models/opensora-vae-v1.2

Exit codes: 0 intact, 1 problems (printed, and listed in the output's verify.json), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import USER_ERRORS, ConfigError, exit_code
from pipeline.output.dataset import require_dataset
from pipeline.output.verify import PATH, Verdict, verify
from pipeline.progress.formatting import byte_size
from pipeline.recipe import Run, available_cpus
from pipeline.storage.store import Store

SHOWN = 20
"""Number of problems to print."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="URL", help="the output of an encode job")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="number of samples to decode and encode again"
    )
    parser.add_argument("--vae", metavar="NAME|PATH|URL", help="the output's VAE, for --sample")
    parser.add_argument("--source", action="append", default=[], metavar="[NAME=]URL", help="current URL of a source")
    parser.add_argument(
        "--min-cosine",
        type=float,
        default=0.999,
        help="lowest cosine for a sample (default: 0.999)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed that selects the samples")
    parser.add_argument("--gpus", type=float, default=0.0, help="1 to encode on a GPU")
    parser.add_argument("--cpus", type=int, default=available_cpus(), help="CPUs to use (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Verify, compare and print the result; return the exit code."""
    arguments = parse_arguments(argv)
    try:
        if arguments.sample and not arguments.vae:
            raise ConfigError("--sample encodes samples again, so it needs --vae")
        store = Store(arguments.output)
        require_dataset(store)
        verdict = verify(store, say=print)
        if arguments.sample:
            _compare(arguments, verdict)
        verdict.save(store)
    except USER_ERRORS as error:
        print(f"error: {error}")
        return exit_code(error)
    _report(verdict, store.url)
    return verdict.exit_code


def _compare(arguments: argparse.Namespace, verdict: Verdict) -> None:
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
        print(
            f"{sample.id}  max difference {sample.max_abs:.2g}  cosine {sample.cosine:.6f}  "
            f"PSNR {sample.psnr_db:.1f} dB  {sample.key[:60]}"
        )
        if sample.cosine < arguments.min_cosine:
            verdict.problems.append(
                (sample.id, f"when encoded again, it has a cosine of {sample.cosine:.4f} to the stored sample")
            )


def _report(verdict: Verdict, url: str) -> None:
    print(
        f"{url}: {verdict.units} units, {verdict.shards} shards, {verdict.samples} samples, "
        f"{byte_size(verdict.size_bytes)} read; {len(verdict.problems) or 'no'} problems"
    )
    for where, what in verdict.problems[:SHOWN]:
        print(f"  {where}: {what}")
    if len(verdict.problems) > SHOWN:
        print(f"  ... {len(verdict.problems) - SHOWN} more in {PATH}")


if __name__ == "__main__":
    sys.exit(main())
