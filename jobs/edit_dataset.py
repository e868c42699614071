"""Remove samples or items from an output, delete their data, tag versions, and print the history. Nothing is encoded.

    python jobs/edit_dataset.py s3://bucket/latents remove --where "meta_score < 2" --reason "too bad"
    python jobs/edit_dataset.py s3://bucket/latents remove --items takedown.jsonl --reason "ticket 12"
    python jobs/edit_dataset.py s3://bucket/latents undo last
    python jobs/edit_dataset.py s3://bucket/latents purge --dry-run
    python jobs/edit_dataset.py s3://bucket/latents tag v1
    python jobs/edit_dataset.py s3://bucket/latents log

All readers apply the newest edits when they open the output. The removed bytes stay where they are until a purge, which
deletes them for good and writes a proof.
Exit codes: 0 done, 1 failed (run it again) or something that was named is not there, 2 wrong arguments or a tag in the way.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.arguments import Parser, add_task_flags
from pipeline.edit.history import log_lines
from pipeline.edit.recording import Change, remove, undo
from pipeline.edit.request import Request, read_ids, read_items
from pipeline.edit.tags import make_tag, remove_tag
from pipeline.errors import USER_ERRORS, ConfigError, LatentmillError, exit_code
from pipeline.output.dataset import read_dataset, require_listed_dataset
from pipeline.output.index import newest_index
from pipeline.output.layout.dataset_card import write_card
from pipeline.progress.formatting import number
from pipeline.progress.terminal import Terminal
from pipeline.storage.probe import open_output
from pipeline.storage.store import Store
from pipeline.visible import make_foreign_text_visible

MAX_LISTED = 20


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="URL", help="output of an encode job")
    parser.add_argument(
        "--single-writer",
        action="store_true",
        help="promise that no other job writes to the output, for stores that cannot create a file only if it is absent",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_remove(commands.add_parser("remove", help="remove samples or items from what readers see"))
    command = commands.add_parser("undo", help="take back what a generation of edits removed")
    command.add_argument("generation", metavar="GENERATION|last", help="number of the generation, as log prints it")
    _add_purge(commands.add_parser("purge", help="delete the data of everything that is removed"))
    command = commands.add_parser("tag", help="give the newest index and edits a name that never changes")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--version", metavar="VERSION", help="tag another version: a tag, or index=3,edits=1")
    command = commands.add_parser("untag", help="remove a tag")
    command.add_argument("name", metavar="NAME")
    commands.add_parser("log", help="print plan, jobs, indexes, edits and tags")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Carry out one command and print what it did; returns the exit code."""
    terminal = Terminal(sys.stdout)
    try:
        arguments = parse_arguments(argv)
        require_listed_dataset(Store(arguments.output))
        if arguments.command == "log":
            terminal.say_lines(log_lines(Store(arguments.output)))
            return 0
        if arguments.command == "purge":
            return _purge(arguments, terminal)
        store = open_output(arguments.output, single_writer=arguments.single_writer)
        code = _change(arguments, store, terminal)
        with contextlib.suppress(LatentmillError, OSError):  # what an earlier command left is no part of the output
            store.sweep()
        return code
    except USER_ERRORS as error:
        terminal.say_error(error)
        return exit_code(error)


def _add_remove(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--where", metavar="EXPR", help="remove the samples that pass a filter, as the loader takes it")
    which.add_argument("--ids", metavar="FILE", help="remove samples by id, one a line")
    which.add_argument(
        "--items",
        metavar="FILE",
        help="remove items, one a line: a key, or JSON with some of source, ordinal, key and uri. Source alone removes all "
        "of its items",
    )
    command.add_argument(
        "--reason", required=True, metavar="TEXT", help="why; it is recorded with the time and your name"
    )
    command.add_argument(
        "--whole-items",
        action="store_true",
        help="with --where or --ids: remove the items of the samples with all their windows, in all groups",
    )


def _add_purge(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--despite-tags",
        action="store_true",
        help="delete what tags need, too, as the law may demand; the tags then say how many samples they have lost",
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    add_task_flags(command, verb="do all work", tasks="write tars and index again")


def _purge(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from pipeline.edit.purge.purging import purge, survey
    from pipeline.edit.purge.summary import PurgeProgress, result_lines, survey_lines
    from pipeline.edit.purge.work import Place
    from pipeline.executor.ray_map import map_tasks_at

    place = Place(url=arguments.output, single_writer=arguments.single_writer)
    map_tasks = map_tasks_at(None if arguments.local else arguments.ray_address)
    if arguments.dry_run:
        store = Store(arguments.output)
        terminal.say_lines(survey_lines(store, survey(store, place, map_tasks)))
        return 0
    store = open_output(arguments.output, single_writer=arguments.single_writer)
    show = PurgeProgress(terminal).show
    results = purge(store, place, map_tasks, show, despite_tags=arguments.despite_tags)
    terminal.say_lines(result_lines(store, results))
    return 0


def _change(arguments: argparse.Namespace, store: Store, terminal: Terminal) -> int:
    if arguments.command == "tag":
        tag = make_tag(store, arguments.name, arguments.version)
        edits = "without edits" if tag.edits is None else f"with edits {tag.edits}"
        terminal.say(f"{arguments.name}: index {tag.index} {edits}, {number(tag.samples, 'sample')}")
        return 0
    if arguments.command == "untag":
        remove_tag(store, arguments.name)
        terminal.say(f"{arguments.name} is no tag any more")
        return 0
    if arguments.command == "undo":
        change = undo(store, _generation(arguments.generation))
    else:
        change = remove(store, _request(arguments))
    terminal.say_lines(_change_lines(store, change))
    index = newest_index(store)
    if index is not None and (note := write_card(store, read_dataset(store).recipe, index)):
        terminal.say(f"  {note}")
    return 1 if change.missing else 0


def _generation(text: str) -> int | None:
    if text == "last":
        return None
    if not text.isdecimal():
        raise ConfigError(f"undo takes the number of a generation of edits, or last; got '{text}'")
    return int(text)


def _request(arguments: argparse.Namespace) -> Request:
    if arguments.items and arguments.whole_items:
        raise ConfigError("--items removes whole items anyway; leave out --whole-items")
    name = next(name for name in ("where", "ids", "items") if getattr(arguments, name) is not None)
    value = getattr(arguments, name)
    return Request(
        selection=f"--{name} {value}{' --whole-items' if arguments.whole_items else ''}",
        reason=arguments.reason,
        where=arguments.where,
        ids=read_ids(value) if name == "ids" else (),
        items=read_items(value) if name == "items" else (),
        whole_items=arguments.whole_items,
    )


def _change_lines(store: Store, change: Change) -> Iterator[str]:
    generation = change.edits.generation
    if not change.recorded:
        yield f"{store.url}: nothing to record; {'no edits' if generation is None else f'edits {generation} are the newest'}"
        if change.note:
            yield f"  {change.note}"
    else:
        facts = change.edits.facts
        rows = number(int(facts["count"]), "row")
        yield f"{store.url}: recorded edits {generation}, {facts['action']} {facts['selection']}, {rows}"
    if change.samples:
        yield f"  {number(change.samples, 'committed sample')} named"
    if change.already:
        yield f"  {number(change.already)} of them removed before"
    for what, names in (
        ("not committed yet; if it comes, it becomes a reject", change.pending),
        ("not there, and not recorded", change.missing),
    ):
        yield from (f"  {name}: {what}" for name in names[:MAX_LISTED])
        if len(names) > MAX_LISTED:
            yield f"  ... and {len(names) - MAX_LISTED} more"


if __name__ == "__main__":
    make_foreign_text_visible()
    sys.exit(main())
