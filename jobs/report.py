"""Write the report.html of an output again. With --vae, also make its gallery: source frames above decoded frames.

    python jobs/report.py s3://bucket/latents
    python jobs/report.py s3://bucket/latents --vae /models/opensora-vae-v1.2 --samples 3

Exit codes: 0 written, 1 the output cannot be read or written, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser
from pipeline.errors import USER_ERRORS, ConfigError, exit_code
from pipeline.output.dataset import require_listed_dataset
from pipeline.output.purges.beside import beside_purges
from pipeline.progress.terminal import Terminal
from pipeline.recipe import Run
from pipeline.report.page import PATH, write_page
from pipeline.setting import available_cpus
from pipeline.storage.store import Store
from pipeline.visible import make_foreign_text_visible


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="URL", help="folder with the output of an encode job")
    parser.add_argument(
        "--vae", metavar="NAME|PATH|URL", help="make the gallery with this VAE, which must be the one of the output"
    )
    parser.add_argument(
        "--samples", type=int, default=2, metavar="N", help="samples per bucket in the gallery (default 2)"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="location of a source that was named or has moved; may be repeated",
    )
    parser.add_argument("--gpus", type=float, default=0.0, help="1 decodes on a GPU (default 0: on the CPU)")
    parser.add_argument(
        "--cpus", type=int, default=available_cpus(), help="threads and decoder processes (default: all)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make the gallery if ``--vae`` is given, then the page; returns the exit code."""
    terminal = Terminal(sys.stdout)
    try:
        arguments = parse_arguments(argv)
        store = Store(arguments.output)
        require_listed_dataset(store)
        if arguments.vae:
            _make_gallery(arguments, terminal)
        elif arguments.source:
            raise ConfigError("--source is used for the gallery only, which needs --vae")
        beside_purges(store, lambda: write_page(store))
    except USER_ERRORS as error:
        terminal.say_error(error)
        return exit_code(error)
    terminal.say(f"{store.url}/{PATH}")
    return 0


def _make_gallery(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from pipeline.report.gallery import make_gallery

    if arguments.samples < 1:
        raise ConfigError(f"--samples must be at least 1, got {arguments.samples}")
    run = Run(
        output=arguments.output,
        vae=arguments.vae,
        sources=tuple(arguments.source),
        gpus=arguments.gpus,
        cpus=arguments.cpus,
    )
    make_gallery(run, arguments.samples, say=terminal.say)


if __name__ == "__main__":
    make_foreign_text_visible()
    sys.exit(main())
