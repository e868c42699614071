"""Write an output in a format that another trainer or library reads. Run it again after a crash: it finishes the rest.

    python jobs/export_dataset.py s3://bucket/latents --to fastvideo --text umt5 --output /data/fastvideo
    python jobs/export_dataset.py demo-out/latents --to parquet --output exported --where 'num_frames == 17' --local

An export is complete when its ``export.json`` exists.
Exit codes: 0 complete, 1 failed (run it again), 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser
from pipeline.errors import USER_ERRORS, ConfigError, exit_code
from pipeline.progress.terminal import Terminal
from pipeline.visible import make_foreign_text_visible


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from pipeline.export.targets.registry import TARGETS

    parser = Parser(
        description=f"{__doc__}\nTargets:\n{_target_lines()}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", metavar="URL", help="output of an encode job")
    add("--to", required=True, metavar="TARGET", help=f"format of the export: {', '.join(sorted(TARGETS))}")
    add("--output", metavar="URL", help="folder or prefix of the export")
    add("--text", metavar="LAYER", help="text layer whose embeddings are exported")
    add(
        "--caption",
        default="caption",
        metavar="COLUMN|each",
        help="column with the caption; 'each' exports a sample once per caption (default: caption)",
    )
    add("--uncaptioned", action="store_true", help="export samples without a caption too, with the empty string")
    add("--where", metavar="EXPR", help="export only the samples that pass this filter")
    add("--version", metavar="TAG", help="tag or version of the output (default: the newest version)")
    add("--root", metavar="FOLDER", help="where the trainer will find the export, for indexes with absolute paths")
    add(
        "--dry-run", action="store_true", help="write some samples into a temporary folder and estimate files and bytes"
    )
    add("--local", action="store_true", help="export in this process, without Ray")
    add(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        metavar="ADDRESS",
        help="Ray cluster to join; local starts one on this machine (default: RAY_ADDRESS, or local)",
    )
    add(
        "--single-writer",
        action="store_true",
        help="promise that no other job writes to the export, for stores that cannot create a file only if it is absent",
    )
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.dry_run:
        raise ConfigError("--output must be given")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Export, report; returns the exit code."""
    terminal = Terminal(sys.stdout)
    try:
        return _run(parse_arguments(argv), terminal)
    except USER_ERRORS as error:
        terminal.say_error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        terminal.say("interrupted: run the same command again to finish the export")
        return 130


def _target_lines() -> str:
    from pipeline.export.targets.registry import TARGETS

    return "\n".join(f"    {name:<18} {target.reader}" for name, target in sorted(TARGETS.items()))


def _run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from pipeline.export.exporter import export_dataset, export_locally, export_on_ray, open_export, rows_by_unit
    from pipeline.export.options import ExportOptions
    from pipeline.export.summary import ExportProgress
    from pipeline.export.unit_export import ExportSettings
    from pipeline.loader.filters import WhereError
    from pipeline.storage.probe import open_output

    options = ExportOptions(
        caption=arguments.caption,
        text=arguments.text,
        where=arguments.where,
        uncaptioned=arguments.uncaptioned,
        version=arguments.version,
        root=arguments.root,
    )
    try:
        data, target = open_export(arguments.dataset, arguments.to, options)
    except WhereError as error:
        raise ConfigError(str(error)) from error
    settings = ExportSettings(
        dataset=arguments.dataset,
        samples=data.samples.digest,
        target=arguments.to,
        options=options,
        output=arguments.output or "",
        version=data.version.name,
        single_writer=arguments.single_writer,
    )
    if arguments.dry_run:
        from pipeline.export.estimate import estimate_export

        terminal.say_lines(estimate_export(data, settings, len(rows_by_unit(data))).lines())
        return 0
    for note in target.notes(data):
        terminal.say(f"note: {note}")
    store = open_output(arguments.output, single_writer=arguments.single_writer)
    execute = partial(export_locally, data=data) if arguments.local else partial(export_on_ray, arguments.ray_address)
    progress = ExportProgress(terminal, len(data))
    summary = export_dataset(data, target, settings, store, execute, progress.show)
    terminal.say_lines(summary.lines())
    return 0


if __name__ == "__main__":
    make_foreign_text_visible()
    sys.exit(main())
