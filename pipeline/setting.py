"""How the fields of ``Recipe`` and ``Run`` become flags, and what their defaults and checks share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field of ``Recipe`` or ``Run`` is written by users, where its name, type and default do not say it.

    ``jobs/flags.py`` derives the command line and configuration files from the fields: the first paragraph of a field's
    docstring is the help text.
    """

    flag: str | None = None
    """Name of the flag without its two dashes; None takes the field's name."""
    metavar: str | None = None
    """Placeholder of the value in the help."""
    comma_separated: bool = False
    """True if one flag takes several values; otherwise the flag of a tuple is repeated."""
    in_groups: bool = False
    """True if the values may be in groups: ``NAME=value,value;NAME=value``, or a mapping in configuration files."""
    default_word: str | None = None
    """Word that users write for the default."""
    former_word: str | None = None
    """Word for the default in earlier versions, which files may still hold."""
    environment: str | None = None
    """Environment variable that overrides the default."""
    computed_words: tuple[str, ...] = ()
    """Words that the field may hold and that users cannot write."""
    unit: int = 1
    """Factor from the flag's unit to the field's, for example bytes per GB."""


def gigabytes(flag: str, default_word: str | None = None) -> Setting:
    """The setting of a size that users write in GB of 2^30 bytes."""
    return Setting(flag, metavar="GB", unit=1 << 30, default_word=default_word)


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def check_positive(**values: float | None) -> None:
    """Raise ConfigError for a value, named like its flag, that is zero or negative."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be positive, got {value}")


def check_columns(range_columns: Sequence[str], columns: Sequence[str]) -> None:
    """Raise ConfigError for too many columns of ranges, and for a column that is not ``name:type``."""
    if len(range_columns) > 2:
        raise ConfigError(
            f"--range-columns takes one column or two, got {len(range_columns)}: {', '.join(range_columns)}"
        )
    for column in columns:
        if not re.fullmatch(r"\w+:(int|float|str|bool)", column):
            raise ConfigError(f"column '{column}' is not name:type with a type of int, float, str or bool")


def check_places(root: str | None, private_hosts: Sequence[str]) -> None:
    """Raise ConfigError for a root that is relative or holds a secret, and for a host that is more than a name."""
    if root is not None and (not re.match(r"/|\w+://", root) or re.search(r"[?#]|//[^/]*@", root)):
        raise ConfigError("--root takes an absolute path, or a URL without user name, password and query")
    for host in private_hosts:
        if not re.fullmatch(r"[^\s/@A-Z]+", host):
            raise ConfigError(f"--allow-host takes a host's name or address alone, in lowercase letters, got '{host}'")
