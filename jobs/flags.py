"""Every flag of ``encode_dataset.py``, declared once: for the command line, configuration files and --print-config."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.recipe import Bucket

Read = Callable[[str], Any]
"""The value that a text stands for; ValueError says what was expected, ConfigError the whole story."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A setting: ``--name`` on the command line, ``name:`` in a file."""

    name: str
    read: Read
    help: str
    default: Any = None
    metavar: str | None = None
    several: Literal["repeated", "commas"] | None = None
    """Whether it takes several values, and how the command line gives them; files may give a list. Always a tuple."""
    required: bool = False

    @property
    def dest(self) -> str:
        """Its name in Python."""
        return self.name.replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value: ``--name`` or ``--no-name``."""
        return self.read is switch

    def value(self, texts: Sequence[str], place: str) -> Any:
        """What the texts stand for; ConfigError names ``place``, what was expected and what is there."""
        values = tuple(self._value(text, place) for text in texts)
        if self.several:
            return values
        if len(values) != 1:
            raise ConfigError(f"{place}: expected one value, got {len(values)}")
        return values[0]

    def _value(self, text: str, place: str) -> Any:
        try:
            return self.read(text)
        except ValueError as error:
            raise ConfigError(f"{place}: expected {error}, got '{text}'") from None
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Declare it on the command line, as text; a default is no value."""
        if self.is_switch:
            group.add_argument(
                f"--{self.name}",
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=self.help,
            )
            return
        default = (
            "" if self.default in (None, ()) or "(default" in self.help else f" (default {plain(self.default)})"
        ).replace("%", "%%")
        group.add_argument(
            f"--{self.name}",
            action="append" if self.several == "repeated" else "store",
            default=argparse.SUPPRESS,
            metavar=self.metavar or getattr(self.read, "metavar", None),
            help=self.help + default,
        )


def plain(value: Any) -> Any:
    """A flag's value as a number, a truth value, a text, a list of these, or None."""
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Bucket) else value


def text(given: str) -> str:
    """Any text but an empty one."""
    if not given:
        raise ValueError("some text")
    return given


def optional(given: str) -> str | None:
    """Any text; an empty one is none."""
    return given or None


def switch(given: str) -> bool:
    """As YAML 1.1 has it: people write all of these."""
    word = given.lower()
    if word not in ("true", "false", "yes", "no", "on", "off"):
        raise ValueError("true or false")
    return word in ("true", "yes", "on")


def number(given: str) -> float:
    """A finite number."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def whole(given: str) -> int:
    """A whole number."""
    try:
        return int(given)
    except ValueError:
        raise ValueError("a whole number") from None


def or_word(read: Read, word: str) -> Read:
    """What ``read`` takes, or one word that stands for itself."""

    def either(given: str) -> Any:
        try:
            return word if given == word else read(given)
        except ValueError as error:
            raise ValueError(f"{error} or '{word}'") from None

    return either


def or_none(read: Read) -> Read:
    """What ``read`` takes, or ``none`` for None."""
    either = or_word(read, "none")
    return lambda given: None if given == "none" else either(given)


def one_of(*words: str) -> Read:
    """One of a few words."""

    def word(given: str) -> str:
        if given not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return given

    word.metavar = "{" + ",".join(words) + "}"  # type: ignore[attr-defined]
    return word


DATA = (
    Flag(
        "source",
        text,
        "tar, manifest (.parquet, .csv, .jsonl) or folder of videos; {00..99} and * expand; may be repeated",
        metavar="[NAME=]URL",
        several="repeated",
        required=True,
    ),
    Flag("output", text, "folder for shards and metadata", metavar="URL", required=True),
)

RECIPE = (
    Flag("vae", text, "checkpoint folder, or 'demo'", metavar="NAME|PATH|URL", required=True),
    Flag(
        "buckets",
        Bucket.parse,
        "clip sizes, for example 480x848x51,848x480x51",
        metavar="HxWxT,...",
        several="commas",
        required=True,
    ),
    Flag(
        "micro-batch",
        whole,
        "clips per call of the VAE, for all or for each bucket (default 1)",
        default=(1,),
        metavar="N,...",
        several="commas",
    ),
    Flag("fps", or_word(number, "native"), "frames per second by presentation time, or 'native'", default="native"),
    Flag("windows", one_of("first", "all", "stride"), "which clips of a video", default="first"),
    Flag("stride-frames", or_none(whole), "frames between window starts, with --windows stride, else 'none'"),
    Flag("remainder", one_of("skip", "shorten"), "frames that do not fill a bucket", default="skip"),
    Flag("max-upscale", number, "largest enlargement (default 1: none)", default=1.0),
    Flag("max-repeats", number, "largest share of repeated frames", default=0.25),
    Flag("resize", one_of("bicubic", "opensora"), "how frames are scaled", default="bicubic"),
    Flag("store", one_of("moments", "mean"), "mean and log-variance, or the mean alone", default="moments"),
    Flag("dtype", one_of("float16", "bfloat16", "float32"), "of the stored latents", default="float16"),
    Flag(
        "compute-dtype",
        one_of("auto", "float32", "bfloat16", "float16"),
        "of the VAE (default auto: bfloat16 with --gpus, else float32; an output keeps what it was begun with)",
        default="auto",
    ),
    Flag("compile", switch, "put the encoder through torch.compile", default=False),
    Flag(
        "conditioning",
        one_of("none", "first", "first-last"),
        "frames of every clip to encode once more, alone, for image-to-video",
        default="none",
    ),
    Flag("spatial-posterior", one_of("mode", "sample"), "of Open-Sora's 2D VAE", default="mode"),
    Flag("decoder", one_of("pyav", "decord"), "what reads videos", default="pyav"),
    Flag("path-column", optional, "of manifests (default: path, url, uri, video or file)"),
    Flag("caption-column", optional, "of manifests (default: caption or text)"),
    Flag(
        "column",
        text,
        "field of JSON beside items to make a column; may be repeated",
        default=(),
        metavar="NAME:TYPE",
        several="repeated",
    ),
    Flag(
        "allow-host",
        text,
        "host with a private address that manifests may name; may be repeated",
        default=(),
        metavar="HOST",
        several="repeated",
    ),
    Flag("unit-clips", whole, "items per shard, of folders and manifests", default=128),
)

RUN = (
    Flag("local", switch, "in this process, without Ray", default=False),
    Flag("actors", whole, "most encoders at once, one per GPU", default=1),
    Flag("gpus", number, "GPUs per encoder (default 0: on the CPU)", default=0.0),
    Flag("cpus", or_word(whole, "all"), "CPUs per encoder", default="all"),
    Flag("max-rejects", number, "stop above this share of rejects", default=0.05),
    Flag(
        "retry-rejects",
        optional,
        "try rejects of a finished output again: a kind from its summary, or all",
        metavar="KIND",
    ),
    Flag("decode-timeout-s", number, "a decoder that takes longer over one request is ended", default=60.0),
    Flag(
        "progress-timeout-s",
        number,
        "on Ray, end when no unit was done for so long, for example as no node comes",
        default=7200.0,
    ),
    Flag("single-writer", switch, "for stores that cannot create a file only if it is absent", default=False),
    Flag("ray-address", optional, "of a cluster (default: RAY_ADDRESS, else a local one)"),
)

DRY_RUN = Flag(
    "dry-run",
    or_word(whole, "all"),
    "encode nothing; look at so many items (default 200) and say what would become of all",
    metavar="ITEMS|all",
)
CLIPS_PER_S = Flag(
    "clips-per-s",
    number,
    "speed of one encoder that --dry-run reckons with, for all or for each bucket",
    metavar="N,...",
    several="commas",
)

GROUPS = {
    "data": DATA,
    "recipe (changes the output; an output keeps to one)": RECIPE,
    "run (free to change from one run to the next)": RUN,
}
"""What configuration files may hold."""
FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}
