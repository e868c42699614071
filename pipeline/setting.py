"""How the fields of ``Recipe`` and ``Run`` become flags, and what their defaults and checks share."""

from __future__ import annotations

import os
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
    environment: str | None = None
    """Environment variable that overrides the default."""
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
