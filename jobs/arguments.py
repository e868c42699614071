"""The command line of ``encode_dataset.py``: its flags above the values of configuration files, and its modes."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jobs.config import MODES, read_config, without_secret
from jobs.flags import FLAGS, GROUPS, Flag, nearest, read_number, read_whole_number
from pipeline.environment import installed_scene_detector
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe, Run

DRY_RUN_ITEMS = "200"
"""Number of items that --dry-run inspects if it is given without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """The parsed command line and configuration files."""

    values: dict[str, Any]
    """Values by flag name; None or absent where the default applies."""
    print_config: bool
    dry_run: int | Literal["all"] | None
    """Number of items that a dry run inspects; None encodes."""
    clips_per_s: tuple[float, ...] | None
    """Speed of an encoder that a dry run assumes: one number, one per group, or one per bucket."""
    calibrate: bool

    def recipe(self, vae_sha256: str) -> Recipe:
        """The recipe for the VAE with this hash. ConfigError if its values contradict each other."""
        recipe = Recipe(vae=vae_sha256, **self._fields(Recipe))
        return dataclasses.replace(recipe, scene_detector=installed_scene_detector(recipe.scenes))

    def run(self) -> Run:
        """The run; environment variables stand in for flags that are not given."""
        return Run(**self._fields(Run))

    def _fields(self, owner: type) -> dict[str, Any]:
        fields = {}
        for flag in FLAGS.values():
            value = self.values.get(flag.name)
            if value is None and flag.setting.environment:
                value = os.environ.get(flag.setting.environment) or None
            if value is not None and flag.owner is owner:
                fields[flag.field] = value
        return fields


def parse_arguments(argv: Sequence[str] | None, description: str | None) -> Arguments:
    """Parse the command line and the files that it names. ConfigError for wrong or missing flags; --help exits."""
    parsed, unknown = _build_parser(description).parse_known_args(argv)
    if unknown:
        name = without_secret(unknown[0].partition("=")[0])
        known = [f"--{each}" for each in (*FLAGS, *MODES)]
        raise ConfigError(f"there is no argument '{name}'{nearest(name, known)}")
    values: dict[str, Any] = {}
    for url in parsed.config:
        values |= read_config(url)
    values |= {name: parse_given(flag, getattr(parsed, name)) for name, flag in FLAGS.items() if name in parsed}
    if parsed.clips_per_s and parsed.dry_run is None:
        raise ConfigError("--clips-per-s is for --dry-run only")
    arguments = Arguments(
        values=values,
        print_config=parsed.print_config,
        dry_run=_parse_dry_run(parsed.dry_run),
        clips_per_s=_parse_speeds(parsed.clips_per_s),
        calibrate=parsed.calibrate,
    )
    missing = [f"--{name}" for name, flag in FLAGS.items() if flag.is_required and not values.get(name)]
    if missing and not arguments.print_config:
        raise ConfigError(f"{', '.join(missing)} must be given, on the command line or in a --config file")
    return arguments


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError for a wrong command line, which the programs print as one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def add_task_flags(command: argparse.ArgumentParser, *, verb: str, tasks: str) -> None:
    """Add the flags that say where tasks without an encoder run: in this process, or on the CPUs of a Ray cluster."""
    command.add_argument("--local", action="store_true", help=f"{verb} in this process, even if RAY_ADDRESS is set")
    command.add_argument(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS") or None,
        metavar="ADDRESS",
        help=f"Ray cluster whose CPUs {tasks}; local starts one on this machine (default: RAY_ADDRESS, or this process "
        "without Ray)",
    )


def _build_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of all flags, whose values stay text; flags that are not given are absent from its result."""
    parser = Parser(
        usage="%(prog)s --source URL --output URL --vae NAME|PATH|URL --buckets HxWxT,... [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    _add_modes(parser)
    return parser


def _add_modes(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``jobs.config.MODES``, which no file may hold."""
    modes = parser.add_argument_group("configuration and trials (not for configuration files)")
    modes.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="URL",
        help="YAML file with any of the flags above, such as 'fps: 24'; later files override earlier ones, "
        "the command line overrides all",
    )
    modes.add_argument("--print-config", action="store_true", help="print all values as such a file; do not encode")
    modes.add_argument(
        "--dry-run",
        nargs="?",
        const=DRY_RUN_ITEMS,
        metavar="ITEMS|all",
        help=f"do not encode; inspect ITEMS items (default {DRY_RUN_ITEMS}) and estimate the whole job",
    )
    modes.add_argument(
        "--clips-per-s",
        metavar="N,...",
        help="speed of one encoder that --dry-run assumes: one number for all buckets, one per group, or one per "
        "bucket",
    )
    modes.add_argument(
        "--calibrate",
        action="store_true",
        help="do not encode; try micro-batch sizes and propose the fastest. With --dry-run: measure the speed for it",
    )


def add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    """Add a flag, whose value stays text. If it is not given, it is absent from the result."""
    default = f" (default: {flag.default_text})" if flag.default_text else ""
    options: dict[str, Any] = {
        "dest": flag.name,
        "default": argparse.SUPPRESS,
        "help": (flag.help.removesuffix(".") + default).replace("%", "%%"),
    }
    if flag.is_switch:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["action"] = "append" if flag.is_list and not flag.setting.comma_separated else "store"
        options["metavar"] = flag.metavar
    group.add_argument(f"--{flag.name}", **options)


def parse_given(flag: Flag, given: Any) -> Any:
    """A flag's value from what argparse collected: a truth value, a text or a list of texts."""
    if isinstance(given, bool):
        return given
    return flag.parse(given if isinstance(given, list) else flag.split(given), f"--{flag.name}")


def _parse_dry_run(text: str | None) -> int | Literal["all"] | None:
    if text is None or text == "all":
        return text  # type: ignore[return-value]
    try:
        return read_whole_number(text)
    except ValueError as error:
        raise ConfigError(f"--dry-run: expected {error} or 'all', got '{text}'") from None


def _parse_speeds(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(read_number(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--clips-per-s: expected {error} per bucket, got '{text}'") from None
