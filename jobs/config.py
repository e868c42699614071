"""Where the values of flags come from: defaults, then configuration files, then the command line. And --print-config.

A file is YAML with one field per flag. Its values are taken as the text that stands there and read as the command line's
are, so that YAML's own guesses (``1:30`` is 90, ``no`` is false, ``010`` is 8) never come in between. Nothing in a file
makes an object: only its nodes are looked at.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import yaml

from jobs.flags import CLIPS_PER_S, DRY_RUN, FLAGS, GROUPS, Flag, plain
from pipeline.errors import ConfigError
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.storage.urls import canonical

MOST_BYTES = 1 << 20
"""Of a configuration file: what is larger is something else."""
DRY_RUN_ITEMS = "200"
MODES = ("config", "print-config", "dry-run", "clips-per-s", "calibrate", "help")
URLS = ("source", "output", "vae", "ray-address")
TAGS = {f"tag:yaml.org,2002:{name}" for name in "str int float bool null timestamp merge value seq map".split()}
NULL = "tag:yaml.org,2002:null"


def parse_arguments(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Every flag's value, by its name in Python. ConfigError for what is wrong or missing; ``--help`` ends the process."""
    given, unknown = _parser(description).parse_known_args(argv)
    if unknown:
        name = _without_secret(unknown[0].partition("=")[0])
        raise ConfigError(
            f"there is no argument '{name}'{_nearest(name, [f'--{known}' for known in (*FLAGS, *MODES)])}"
        )
    values = {flag.dest: flag.default for flag in FLAGS.values()}
    for url in given.config:
        values |= read_config(url)
    values |= {flag.dest: _typed(flag, getattr(given, flag.dest)) for flag in FLAGS.values() if flag.dest in given}
    for flag in (DRY_RUN, CLIPS_PER_S):
        values[flag.dest] = _typed(flag, getattr(given, flag.dest)) if flag.dest in given else None
    if values[CLIPS_PER_S.dest] and values[DRY_RUN.dest] is None:
        raise ConfigError(f"--{CLIPS_PER_S.name} is a figure for --{DRY_RUN.name}")
    missing = [f"--{flag.name}" for flag in FLAGS.values() if flag.required and not values[flag.dest]]
    if missing and not given.print_config:
        raise ConfigError(f"{', '.join(missing)} must be given, on the command line or in a --config file")
    return argparse.Namespace(**vars(given) | values)


def read_config(url: str) -> dict[str, Any]:
    """The values that a file gives, by their names in Python. ConfigError names file, line, field, expected and got."""
    shown = canonical(url) if "://" in url else url
    root = _compose(url, shown)
    if not isinstance(root, yaml.MappingNode | None):
        raise ConfigError(f"{shown}: expected fields such as 'fps: 24', got {_what(root)}")
    values: dict[str, Any] = {}
    for key, node in root.value if root else ():
        place = f"{shown}:{key.start_mark.line + 1}"
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else _what(key)
        flag = FLAGS.get(name.replace("_", "-"))
        if flag is None and name.replace("_", "-") in MODES:
            raise ConfigError(f"{place}: '{name}' is for the command line only: it is not about the output")
        if flag is None:
            raise ConfigError(f"{place}: there is no field '{name}'{_nearest(name, FLAGS)}")
        if flag.dest in values:
            raise ConfigError(f"{place}: field '{name}' is given twice")
        values[flag.dest] = _field(flag, node, f"{place}: {name}")
    return values


def print_config(arguments: argparse.Namespace) -> str:
    """A configuration file with every flag's value, from which the same recipe comes again.

    A URL with a password, signature or other query is left out, with its field, and said without them: a file in git is no
    place for them, and the URL without them would be another.
    """
    lines = []
    for title, flags in GROUPS.items():
        lines += ["", f"# {title}"]
        for flag in flags:
            lines += _lines(flag, getattr(arguments, flag.dest))
    return "\n".join(lines[1:])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def _parser(description: str | None) -> argparse.ArgumentParser:
    """The command line. Flags are there only if given, since files stand between them and the defaults."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            flag.add_to(group)
    modes = parser.add_argument_group("configuration and trials (nothing of these in files)")
    modes.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="URL",
        help="YAML file with any of the flags above, as 'fps: 24'; the command line, then later files win",
    )
    modes.add_argument("--print-config", action="store_true", help="print all values as such a file; encode nothing")
    modes.add_argument(
        f"--{DRY_RUN.name}",
        nargs="?",
        const=DRY_RUN_ITEMS,
        default=argparse.SUPPRESS,
        metavar=DRY_RUN.metavar,
        help=DRY_RUN.help,
    )
    CLIPS_PER_S.add_to(modes)
    modes.add_argument(
        "--calibrate",
        action="store_true",
        help="encode nothing; try sizes of micro-batch and propose the best. With --dry-run: measure its speed",
    )
    return parser


def _typed(flag: Flag, given: Any) -> Any:
    """A flag's value from the command line."""
    if isinstance(given, bool):
        return given
    return flag.value(given if isinstance(given, list) else _texts(flag, given), f"--{flag.name}")


def _texts(flag: Flag, given: str) -> list[str]:
    return [part.strip() for part in given.split(",")] if flag.several == "commas" else [given]


def _compose(url: str, shown: str) -> yaml.Node | None:
    try:
        size_bytes = file_facts(url).size
        if size_bytes > MOST_BYTES:
            raise ConfigError(f"--config {shown} has {size_bytes} bytes: is it a configuration file?")
        node: yaml.Node | None = yaml.compose(read_whole(url, size_bytes), yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"there is no file at --config {shown}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = "; quote texts that begin with one of * & ! % @ ` { [, or have ': ' or ' #' in them"
        raise ConfigError(f"{shown}{line}: not YAML: {error.problem}{hint}") from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"{shown}: not YAML: it is no text, or nested too deeply") from None
    return node


def _field(flag: Flag, node: yaml.Node, place: str) -> Any:
    """A flag's value from a file; null stands for its default."""
    if _is_null(node):
        return flag.default
    if isinstance(node, yaml.SequenceNode) and flag.several:
        return flag.value([_text(part, place) for part in node.value], place)
    return flag.value(_texts(flag, _text(node, place)), place)


def _text(node: yaml.Node, place: str) -> str:
    """A scalar as it is written."""
    if node.tag not in TAGS:
        raise ConfigError(f"{place}: expected a plain value, got the tag {node.tag.removeprefix('tag:yaml.org,2002:')}")
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise ConfigError(f"{place}: expected a value, got {_what(node)}")
    return str(node.value)


def _is_null(node: yaml.Node) -> bool:
    """Whether nothing stands there, or a word that means it; in quotes it would be a text."""
    return isinstance(node, yaml.ScalarNode) and node.tag == NULL and node.style is None


def _what(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if _is_null(node) else f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "fields of its own"


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name.replace("_", "-"), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else "; --help lists them all"


def _lines(flag: Flag, value: Any) -> list[str]:
    """A flag as a field with its meaning behind it."""
    values = [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]
    if flag.name in URLS and any(map(_has_secret, values)):
        names = ", ".join(_without_secret(v) for v in values)
        return [f"# {flag.name}: {names}  # has a password or query: give it on the command line"]
    scalars = [_scalar(plain(v)) for v in values]
    if value is None:
        scalars = ["null"]
    comment = f"  # {'required: ' if flag.required and not values else ''}{flag.help}"
    if len(scalars) == 1:
        return [f"{flag.name}: {scalars[0]}{comment}"]
    if not scalars:
        return [f"{flag.name}: []{comment}"]
    return [f"{flag.name}:{comment}", *(f"  - {scalar}" for scalar in scalars)]


def _scalar(value: Any) -> str:
    dumped: str = yaml.safe_dump(value, allow_unicode=True, width=1 << 20)
    return dumped.removesuffix("...\n").rstrip("\n")


def _has_secret(url: str) -> bool:
    """Whether a URL, perhaps after ``NAME=``, has a user, a password or what may be a signature."""
    parts = urlsplit(_unnamed(url))
    if not parts.scheme or not parts.netloc:
        return False
    signed = parts.query or parts.fragment if parts.scheme in ("http", "https") else "=" in parts.query
    return "@" in parts.netloc or bool(signed)


def _without_secret(url: str) -> str:
    bare = _unnamed(url)
    return url.removesuffix(bare) + (canonical(bare) if "://" in bare else bare)


def _unnamed(url: str) -> str:
    return re.sub(r"^[\w.-]+=(?=.)", "", url)
