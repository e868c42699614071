"""Write an output's latents in a format that other libraries read. Run it again after a crash: it finishes the rest.

    python jobs/export_dataset.py s3://bucket/latents --to parquet --output s3://bucket/latents-parquet
    python jobs/export_dataset.py demo-out/latents --to parquet --output exported --where 'num_frames == 17'

An export is complete when its ``export.json`` exists.
Exit codes: 0 complete, 1 failed (run it again), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser
from pipeline.errors import USER_ERRORS, exit_code
from pipeline.progress.formatting import byte_size, number
from pipeline.progress.terminal import Terminal
from pipeline.storage.probe import open_output
from pipeline.visible import make_foreign_text_visible


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="URL", help="output of an encode job")
    parser.add_argument("--to", required=True, metavar="TARGET", help="format of the export: parquet")
    parser.add_argument("--output", required=True, metavar="URL", help="folder or prefix of the export")
    parser.add_argument(
        "--single-writer",
        action="store_true",
        help="promise that no other job writes to the export, for stores that cannot create a file only if it is absent",
    )
    parser.add_argument("--where", metavar="EXPR", help="export only the samples that pass this filter")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export, report; returns the exit code."""
    terminal = Terminal(sys.stdout)
    try:
        arguments = parse_arguments(argv)
        from pipeline.export.exporter import export_dataset
        from pipeline.export.targets import find_target
        from pipeline.loader import LatentDataset
        from pipeline.loader.filters import WhereError

        target = find_target(arguments.to)
        store = open_output(arguments.output, single_writer=arguments.single_writer)
        try:
            data = LatentDataset(arguments.dataset, where=arguments.where)
        except WhereError as error:
            terminal.say_error(error)
            return 2
        summary = export_dataset(data, target, store, terminal.show if terminal.rewrites else lambda line: None)
    except USER_ERRORS as error:
        terminal.say_error(error)
        return exit_code(error)
    size = byte_size(summary.size_bytes)
    terminal.say(
        f"{summary.url}: {number(summary.samples, 'sample')} in {number(summary.units, 'unit')}, {size} of {summary.target}"
    )
    return 0


if __name__ == "__main__":
    make_foreign_text_visible()
    sys.exit(main())
