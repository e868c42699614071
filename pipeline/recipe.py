"""What a job does: ``Recipe`` (changes the bytes of the output, fingerprinted) and ``Run`` (does not)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError, IntegrityError
from stvae.card import OPEN_SORA_CLASS, Card
from stvae.geometry import ShapeError

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The size of a clip in pixels, and so one latent shape. Written HxWxT: ``480x848x51``."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The bucket written HxWxT; ConfigError otherwise."""
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip())
        if not match:
            raise ConfigError(f"bucket '{text}' is not HEIGHTxWIDTHxFRAMES, for example 480x848x51")
        height, width, num_frames = map(int, match.groups())
        return cls(num_frames, height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that changes the bytes of the output. Two jobs with equal recipes may share an output."""

    vae: str
    """sha256 of the VAE's configuration and weights."""
    buckets: tuple[Bucket, ...]
    micro_batch: tuple[int, ...]
    """Clips per call of the VAE, one number per bucket."""
    fps: float | None = None
    """Frames per second of the clips, taken by presentation time; None takes every frame of the source."""
    windows: Literal["first", "all", "stride"] = "first"
    stride_frames: int | None = None
    """Frames between the starts of two windows, for ``windows="stride"``."""
    remainder: Literal["skip", "shorten"] = "skip"
    """What happens to frames that do not fill a bucket: skipped, or kept as fewer frames by the VAE's frame rule."""
    max_upscale: float = 1.0
    """A bucket is not used for items that would have to be enlarged more than this."""
    max_repeats: float = 0.25
    """A clip is skipped if a larger share of its frames merely repeats the frame before."""
    resize: Literal["bicubic", "opensora"] = "bicubic"
    store: Literal["moments", "mean"] = "moments"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` becomes one of the others when a job starts, before anything is recorded."""
    compile: bool = False
    """Whether the encoder goes through torch.compile: faster on GPUs, other last bits."""
    spatial_posterior: Literal["mode", "sample"] = "mode"
    conditioning: Literal["none", "first", "first-last"] = "none"
    """Frames of every clip that are encoded once more, alone."""
    decoder: Literal["pyav", "decord"] = "pyav"
    path_column: str | None = None
    """Of manifests; None finds the one column named path, url, uri, video or file."""
    caption_column: str | None = None
    """Of manifests; None finds the one column named caption or text, if there is one."""
    columns: tuple[str, ...] = ()
    """Fields of JSON found beside items that become columns: ``name:type``, type in int, float, str, bool."""
    unit_clips: int = 128
    """Items per output shard, for folders and manifests."""
    private_hosts: tuple[str, ...] = ()
    """Hosts with private addresses that the rows of manifests may name."""
    max_pixels: int = 8192 * 8192
    max_duration_s: float = 6 * 3600.0
    max_item_bytes: int = 8 << 30

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ConfigError("no buckets: give at least one, for example --buckets 480x848x51")
        if len(set(self.buckets)) < len(self.buckets):
            raise ConfigError(f"a bucket is given twice: {', '.join(map(str, self.buckets))}")
        if len(self.micro_batch) != len(self.buckets) or min(self.micro_batch) < 1:
            raise ConfigError(
                f"micro_batch needs one number of at least 1 for each of {len(self.buckets)} buckets, "
                f"got {list(self.micro_batch)}"
            )
        if (self.windows == "stride") != (self.stride_frames is not None):
            raise ConfigError("--windows stride and --stride-frames go together")
        for name in ("fps", "stride_frames", "max_upscale", "unit_clips"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        for column in self.columns:
            if not re.fullmatch(r"\w+:(int|float|str|bool)", column):
                raise ConfigError(f"column '{column}' is not name:type with a type of int, float, str or bool")

        for host in self.private_hosts:
            if not re.fullmatch(r"[^\s/@A-Z]+", host):
                raise ConfigError(f"--allow-host takes a host's name or address alone, in small letters, got '{host}'")

    def check_vae(self, card: Card) -> None:
        """Refuse what the VAE cannot do; for buckets that it cannot encode, name the nearest size that fits."""
        for bucket in self.buckets:
            try:
                card.geometry.check((bucket.num_frames, bucket.height, bucket.width))
            except ShapeError as error:
                raise ConfigError(f"bucket {bucket} does not fit the VAE: {error}") from error
        if self.spatial_posterior == "sample" and card.class_name != OPEN_SORA_CLASS:
            raise ConfigError(f"--spatial-posterior is a setting of Open-Sora's VAE; {card.class_name} has none")

    @property
    def clips_per_call(self) -> dict[Bucket, int]:
        """The micro-batch of each bucket."""
        return dict(zip(self.buckets, self.micro_batch, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``dataset.json`` records and ``fingerprint`` hashes."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | lists | {"buckets": [str(bucket) for bucket in self.buckets]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """The recipe that ``to_json`` wrote, also if an earlier version did: fields that it lacks have their default.

        IntegrityError names fields that this program does not know, settings it does not know, and fields that are
        missing and have no default.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        refuse_unknown_fields("the recipe", values, fields)
        missing = [name for name, field in fields.items() if field.default is MISSING and name not in values]
        if missing:
            raise IntegrityError(f"the recipe lacks {', '.join(missing)}")
        for name, type_ in get_type_hints(cls).items():
            if get_origin(type_) is Literal and name in values and values[name] not in get_args(type_):
                raise IntegrityError(f"the recipe has {name} '{values[name]}', which this program does not know")
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | tuples | {"buckets": tuple(Bucket.parse(text) for text in values["buckets"])})

    @property
    def fingerprint(self) -> str:
        """Short hash over the format version and the fields that differ from their defaults.

        A field that is added later leaves the fingerprints of earlier outputs as they are, as long as it has its default.
        Therefore the default of a field must never change once it is released.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        changed = {name: value for name, value in self.to_json().items() if getattr(self, name) != defaults[name]}
        text = json.dumps([FORMAT_VERSION, changed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def refuse_unknown_fields(what: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise IntegrityError, which names them, if ``values`` has fields that are not ``known``."""
    unknown = sorted(name for name in values if name not in known)
    if unknown:
        raise IntegrityError(
            f"{what} has fields that this program does not know: {', '.join(unknown)}; "
            "use the newer Latentmill that wrote it"
        )


def differing_fields(recorded: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Lines ``name: recorded -> ours`` for every field that differs between two recipes' plain values."""
    names = sorted(recorded.keys() | ours.keys())
    return [f"{n}: {recorded.get(n)} -> {ours.get(n)}" for n in names if recorded.get(n) != ours.get(n)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where the work is and how it is done. Free to change when a job is run again."""

    output: str
    vae: str
    """Name, path or URL of the VAE."""
    sources: tuple[str, ...]
    """As given: ``URL`` or ``NAME=URL``."""
    local: bool = False
    """In this process, without Ray."""
    ray_address: str = "local"
    """Of the cluster to join; ``local`` starts one on this machine, ``auto`` joins the one that started this job."""
    actors: int = 1
    """Most encoders at once; one per GPU."""
    gpus: float = 0.0
    """GPUs of one encoder."""
    cpus: int = 1
    """CPUs of one encoder: as many children decode for it, and as many threads compute where it has no GPU."""
    decode_timeout_s: float = 60.0
    """A child that takes longer over one request is killed."""
    decode_memory_bytes: int = 4 << 30
    """Of one decoding child, beyond what it starts with."""
    max_rejects: float = 0.05
    retry_rejects: str | None = None
    """Rejects to try again: ``all``, a kind or ``stage/reason``."""
    single_writer: bool = False
    """Promise that no other job writes to this output, for stores that cannot create a file only if it is absent."""
    progress_timeout_s: float = 7200.0
    """Ray gives the job up when no unit has moved for this long."""

    @property
    def auto_compute_dtype(self) -> Literal["bfloat16", "float32"]:
        """What ``auto`` stands for in a new output."""
        return "bfloat16" if self.gpus else "float32"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the actors' constructor. Never written to the output: sources may carry credentials."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Run:
        """The run that ``to_json`` wrote."""
        return cls(**values | {"sources": tuple(values["sources"])})
