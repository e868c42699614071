"""Configuration files: read them into values of flags, and print values as such a file.

A file is YAML with one field per flag. Each value is taken as the text in the file and parsed like the same text on the
command line, so YAML's own guesses (``1:30`` is 90, ``no`` is false, ``010`` is 8) do not apply. Only the nodes of the
YAML are read; no object is built from it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import yaml

from jobs.flags import FLAGS, GROUPS, Flag, nearest
from pipeline.errors import ConfigError
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.storage.urls import canonical
from pipeline.visible import visible

MAX_BYTES = 1 << 20
"""Largest configuration file in bytes; a larger one is some other file given by mistake."""
MODES = ("config", "print-config", "dry-run", "clips-per-s", "calibrate", "help")
"""Flags of the command line alone."""
URLS = ("source", "output", "vae", "ray-address")
"""Flags whose values may carry a secret."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in "str int float bool null timestamp merge value seq map".split()}
NULL = "tag:yaml.org,2002:null"


def read_config(url: str) -> dict[str, Any]:
    """Read a file's values by flag name; None means the default. ConfigError names file, line, field, expected and got."""
    shown = canonical(url) if "://" in url else url
    root = _compose(url, shown)
    if not isinstance(root, yaml.MappingNode | None):
        raise ConfigError(f"{shown}: expected fields such as 'fps: 24', got {_describe(root)}")
    values: dict[str, Any] = {}
    for key, node in root.value if root else ():
        place = f"{shown}:{key.start_mark.line + 1}"
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else _describe(key)
        flag = _find_flag(name, place)
        if flag.name in values:
            raise ConfigError(f"{place}: field '{name}' is given twice")
        values[flag.name] = _read_field(flag, node, f"{place}: {name}")
    return values


def print_config(values: dict[str, Any]) -> str:
    """A configuration file with every flag, from which ``read_config`` gives the same recipe and run.

    A URL with a password, signature or other query is left out together with its field: a secret does not belong in a
    file under version control, and the URL without its query would be another URL.
    """
    lines = []
    for title, flags in GROUPS.items():
        lines += ["", f"# {title}"]
        for flag in flags:
            lines += _print_flag(flag, values.get(flag.name))
    return "\n".join(lines[1:])


def without_secret(url: str) -> str:
    """The URL, perhaps after ``NAME=``, without user, password, query and fragment."""
    bare = _without_name(url)
    return url.removesuffix(bare) + (canonical(bare) if "://" in bare else bare)


def _find_flag(name: str, place: str) -> Flag:
    """The flag of a field's name, which may have underscores for dashes."""
    flag = FLAGS.get(name.replace("_", "-"))
    if flag:
        return flag
    if name.replace("_", "-") in MODES:
        raise ConfigError(f"{place}: '{name}' is for the command line only: it does not describe the output")
    raise ConfigError(f"{place}: there is no field '{name}'{nearest(name, FLAGS)}")


def _compose(url: str, shown: str) -> yaml.Node | None:
    """The root node of a YAML file; None if the file is empty."""
    try:
        size_bytes = file_facts(url).size
        if size_bytes > MAX_BYTES:
            raise ConfigError(f"--config {shown} has {size_bytes} bytes; a configuration file has at most {MAX_BYTES}")
        node: yaml.Node | None = yaml.compose(read_whole(url, size_bytes), yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"there is no file at --config {shown}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = "; quote texts that begin with one of * & ! % @ ` { [ or contain ': ' or ' #'"
        raise ConfigError(f"{shown}{line}: not YAML: {error.problem}{hint}") from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"{shown}: not YAML: it is not text, or it is nested too deeply") from None
    return node


def _read_field(flag: Flag, node: yaml.Node, place: str) -> Any:
    if _is_null(node):
        return None
    _check_tag(node, place)
    if isinstance(node, yaml.SequenceNode) and flag.is_list:
        return flag.parse([_read_text(part, place) for part in node.value], place)
    if isinstance(node, yaml.MappingNode) and flag.setting.in_groups:
        names = [_read_text(key, place) for key, _ in node.value]
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise ConfigError(f"{place}: group '{twice[0]}' is given twice")
        return flag.parse([text for key, value in node.value for text in _read_group(flag, key, value, place)], place)
    return flag.parse(flag.split(_read_text(node, place)), place)


def _read_group(flag: Flag, key: yaml.Node, node: yaml.Node, place: str) -> list[str]:
    """The texts of the values of one group, with its name: ``NAME=value``."""
    name = _read_text(key, place)
    if isinstance(node, yaml.SequenceNode):
        return [f"{name}={_read_text(part, place)}" for part in node.value]
    return flag.split(f"{name}={_read_text(node, place)}")


def _read_text(node: yaml.Node, place: str) -> str:
    """The text of a scalar as it is written."""
    _check_tag(node, place)
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise ConfigError(f"{place}: expected a value, got {_describe(node)}")
    return str(node.value)


def _check_tag(node: yaml.Node, place: str) -> None:
    """ConfigError if a value has a tag that is not one of YAML's own plain ones."""
    if node.tag not in TAGS:
        raise ConfigError(f"{place}: expected a plain value, got the tag {node.tag.removeprefix('tag:yaml.org,2002:')}")


def _is_null(node: yaml.Node) -> bool:
    """True if a value is missing or an unquoted word for null."""
    return isinstance(node, yaml.ScalarNode) and node.tag == NULL and node.style is None


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if _is_null(node) else f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "fields of its own"


def _print_flag(flag: Flag, value: Any) -> list[str]:
    """The lines of one field, with the help as a comment."""
    comment = f"  # {'required: ' if flag.is_required and not value else ''}{flag.help}"
    if value is None:
        value = None if flag.is_required or flag.setting.environment else flag.setting.default_word or flag.default
    values = value if isinstance(value, tuple) else (value,)
    if flag.name in URLS and any(_has_secret(each) for each in values if each):
        urls = ", ".join(without_secret(each) for each in values)
        return [f"# {flag.name}: {urls}  # has a password or query: give it on the command line"]
    scalars = [_print_scalar(flag, each) for each in values]
    if len(scalars) == 1:
        return [f"{flag.name}: {scalars[0]}{comment}"]
    if not scalars:
        return [f"{flag.name}: []{comment}"]
    return [f"{flag.name}:{comment}", *(f"  - {scalar}" for scalar in scalars)]


def _print_scalar(flag: Flag, value: Any) -> str:
    if value is None:
        return "null"
    plain = value if isinstance(value, str) else flag.to_plain(value)
    if isinstance(plain, str) and visible(plain) != plain:  # as escapes, which give the same text when they are read
        escaped: str = yaml.safe_dump(plain, default_style='"', width=1 << 30)
        return escaped.rstrip("\n")
    dumped: str = yaml.safe_dump(plain, allow_unicode=True, width=1 << 20)
    return dumped.removesuffix("...\n").rstrip("\n")


def _has_secret(url: str) -> bool:
    """True if a URL, perhaps after ``NAME=``, has a user, a password or a query that may be a signature."""
    parts = urlsplit(_without_name(url))
    if not parts.scheme or not parts.netloc:
        return False
    signed = parts.query or parts.fragment if parts.scheme in ("http", "https") else "=" in parts.query
    return "@" in parts.netloc or bool(signed)


def _without_name(url: str) -> str:
    return re.sub(r"^[\w.-]+=(?=.)", "", url)
