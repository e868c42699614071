"""The description of a job: ``Recipe`` (changes the bytes of the output, fingerprinted) and ``Run`` (does not)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pipeline.bucket import Bucket, check_buckets, check_sizes, group_buckets, numbers_needed, one_per_bucket
from pipeline.errors import ConfigError, check_recorded
from pipeline.setting import Setting, available_cpus, check_columns, check_places, check_positive, gigabytes
from stvae.card import OPEN_SORA_CLASS, Card

FORMAT_VERSION = 2
SCENE_THRESHOLDS = {"adaptive": 3.0, "content": 27.0, "transnet": 0.5}
"""Default threshold of each detector of scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that changes the bytes of the output. Two jobs with equal recipes may share an output."""

    vae: str
    """sha256 of the VAE's configuration and weights. The job computes it from ``Run.vae``; it has no flag."""
    buckets: Annotated[tuple[Bucket, ...], Setting(metavar="HxWxT,...", comma_separated=True, in_groups=True)]
    """Clip sizes in pixels and frames: 480x848x51,848x480x51, or in groups '240p=240x424x51;480p=480x848x51'.

    Every group gets clips of its own from each video, which is decoded once for all of them.
    """
    micro_batch: Annotated[tuple[int, ...], Setting(metavar="N,...", comma_separated=True)] = (1,)
    """Clips per call of the VAE: one number for all buckets, one per group, or one per bucket.

    After construction there is one number per bucket.
    """
    fps: Annotated[float | None, Setting(default_word="native")] = None
    """Frames per second, sampled by presentation time; native keeps every frame."""
    windows: Literal["first", "all", "stride"] = "first"
    """Clips to cut from a video or from each scene: the first one, all in a row, or one every --stride-frames frames."""
    stride_frames: Annotated[int | None, Setting(default_word="none")] = None
    """Frames between the starts of two clips; goes with --windows stride."""
    remainder: Literal["skip", "shorten"] = "skip"
    """Frames that do not fill a bucket: skip them, or encode them as a shorter clip that the VAE can take."""
    max_upscale: float = 1.0
    """Largest enlargement of a video to fill a bucket; 1 means none."""
    crop: Literal["center", "top", "random"] = "center"
    """Part of a picture to keep if it is longer than its bucket: the center, the top (sides are cropped evenly), or random.

    All clips of an item share its random crop, in all groups. It follows from ``crop_seed`` and the item.
    """
    crop_seed: int = 0
    """Seed of random crops; goes with --crop random."""
    max_repeats: float = 0.25
    """Largest share of a clip's frames that may repeat the frame before; clips above it are skipped."""
    interlaced: Literal["skip", "keep", "deinterlace"] = "skip"
    """Videos whose frames hold two fields from different times: skip them, keep their combed frames, or deinterlace them.

    The default is to skip because a VAE learns combs as texture, and because deinterlacing invents every other line.
    """
    dolby_vision: Literal["reject", "keep"] = "reject"
    """Dolby Vision profile 5, whose colors are wrong without its own decoder: reject the video, or keep what decodes."""
    hdr: Literal["keep", "tonemap"] = "keep"
    """HDR video (PQ, HLG): keep the coded values, which look pale, or tone-map them to SDR."""
    resize: Literal["bicubic", "opensora", "ffmpeg"] = "bicubic"
    """Interpolation of resized frames: bicubic; opensora, as its video reader (bilinear); ffmpeg, fast and in YUV (area)."""
    store: Annotated[Literal["moments", "mean", "sample"], Setting(computed_words=("sample",))] = "moments"
    """Part of the posterior to store: mean and log-variance, or the mean alone. Imported latents may be samples of it."""
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """Data type of the stored latents; int8 has a scale for each channel and latent frame, and goes with --store mean."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type in which the VAE computes; auto is bfloat16 on GPUs and float32 on CPUs.

    A job replaces ``auto`` before it records anything; an output keeps the type it was started with.
    """
    compile: bool = False
    """Compile the encoder with torch.compile: faster on GPUs, with small differences in the values."""
    spatial_posterior: Literal["mode", "sample"] = "mode"
    """Open-Sora's VAE only: pass the mode or a sample of the 2D posterior on to the temporal encoder."""
    conditioning: Literal["none", "first", "first-last"] = "none"
    """Frames of each clip that are also encoded on their own, for image-to-video training."""
    decoder: Literal["pyav", "decord"] = "pyav"
    """Library that decodes videos."""
    path_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Manifest column with paths, URLs or videos, or a pattern such as {id}.mp4; by default named path, url or alike."""
    caption_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Manifest column with captions; by default the one named caption, text or alike."""
    class_column: Annotated[str | None, Setting(metavar="COLUMN")] = None
    """Column for the name of the folder that a file of a folder lies in, for folders by class; by default there is none."""
    root: Annotated[str | None, Setting(metavar="URL")] = None
    """Folder where relative paths of manifests start; by default the folder of the manifest.

    Part of the recipe because it decides the samples' ``uri``.
    """
    cameras: Annotated[tuple[str, ...], Setting("camera", metavar="NAME")] = ()
    """Camera of LeRobot folders to encode, for example observation.images.top; may be repeated; by default all of them."""
    range_columns: Annotated[tuple[str, ...], Setting(metavar="START,END|COLUMN|none", comma_separated=True)] = ()
    """Manifest columns with the start and end of a clip, or one with pairs; none for no ranges.

    By default columns named like start and end, start_time and end_time, timestamp or cut.
    """
    columns: Annotated[tuple[str, ...], Setting("column", metavar="NAME:TYPE")] = ()
    """Field of the items' JSON metadata to store as a column of type int, float, str or bool; may be repeated."""
    range_unit: Literal["seconds", "frames"] = "seconds"
    """Unit of the starts and ends of clips that a manifest names; a range of frames does not contain its end."""
    scenes: Literal["none", "adaptive", "content", "transnet"] = "none"
    """Detector of scenes, so that no clip spans a cut: PySceneDetect's adaptive or content, or TransNet V2."""
    scene_threshold: Annotated[float | None, Setting(default_word="the detector's own")] = None
    """Score above which a frame is a cut: by default 3 for adaptive, 27 for content and 0.5 for transnet."""
    min_scene_s: float = 0.5
    """Shortest scene to cut clips from, in seconds; goes with --scenes."""
    scene_detector: str | None = None
    """Package and version of the detector. The job fills it in from what is installed; it has no flag."""
    unit_clips: int = 128
    """Items per output shard, for folders and manifests.

    Part of the recipe because it decides which samples share a shard: another value gives other shards and other units.
    """
    private_hosts: Annotated[tuple[str, ...], Setting("allow-host", metavar="HOST")] = ()
    """Host with a private address that manifests may name; may be repeated.

    Part of the recipe because it decides which items become samples and which become rejects.
    """
    trust_proxy: bool = False
    """Fetch what manifests name through the proxy in HTTPS_PROXY, which must refuse private addresses itself."""
    max_pixels: int = 8192 * 8192
    """Largest size of a frame in pixels (height times width); larger videos become rejects."""
    max_duration_s: float = 6 * 3600.0
    """Longest duration of a video in seconds; longer ones become rejects."""
    max_item_bytes: Annotated[int, gigabytes("max-item-gb")] = 8 << 30
    """Largest file of an item, in GB of 2^30 bytes; larger ones become rejects."""
    origin: Literal["encode", "import"] = "encode"
    """Origin of the latents: this program's encoders, or ``jobs/import_dataset.py``, which fills it in; it has no flag."""
    imported_latents: Literal["none", "raw", "normalized"] = "none"
    """Form of imported latents in their source. The output has raw ones. It has no flag of ``encode_dataset.py``."""

    def __post_init__(self) -> None:
        if self.origin == "encode":  # imported latents have the sizes of their source
            check_buckets(self.buckets)
            if self.store == "sample":
                raise ConfigError("--store sample is for imported latents; from moments, the loader draws samples")
        micro_batch = one_per_bucket(self.micro_batch, self.buckets)
        if micro_batch is None or min(micro_batch, default=1) < 1:
            raise ConfigError(
                f"--micro-batch needs one number of at least 1, {numbers_needed(self.buckets)}, "
                f"got {list(self.micro_batch)}"
            )
        object.__setattr__(self, "micro_batch", micro_batch)
        if self.crop_seed and self.crop != "random":
            raise ConfigError("--crop-seed goes with --crop random")
        if self.dtype == "int8" and self.store == "moments":
            raise ConfigError(
                "--dtype int8 goes with --store mean, because log-variances do not keep their meaning in 8 bits"
            )
        if (self.windows == "stride") != (self.stride_frames is not None):
            raise ConfigError("--windows stride and --stride-frames go together")
        if self.scenes != "none" and self.scene_threshold is None:
            object.__setattr__(self, "scene_threshold", SCENE_THRESHOLDS[self.scenes])
        if self.scenes == "none" and self.scene_threshold is not None:
            raise ConfigError("--scene-threshold goes with --scenes adaptive, content or transnet")
        if self.decoder == "decord" and (self.scenes == "transnet" or self.resize == "ffmpeg"):
            raise ConfigError("--scenes transnet and --resize ffmpeg need --decoder pyav")
        check_positive(fps=self.fps, stride_frames=self.stride_frames, max_upscale=self.max_upscale)
        check_positive(unit_clips=self.unit_clips, max_pixels=self.max_pixels, max_duration_s=self.max_duration_s)
        check_positive(max_item_gb=self.max_item_bytes, scene_threshold=self.scene_threshold)
        check_columns(self.range_columns, self.columns)
        check_places(self.root, self.private_hosts)

    def check_vae(self, card: Card) -> None:
        """Refuse what the VAE cannot do; for buckets that it cannot encode, name the nearest size that fits."""
        check_sizes(self.buckets, card.geometry)
        if card.lacks_logvar and self.store == "moments":
            raise ConfigError(f"{card.class_name} has no true log-variance, so it cannot be sampled; give --store mean")
        if self.spatial_posterior == "sample" and card.class_name != OPEN_SORA_CLASS:
            raise ConfigError(f"--spatial-posterior is a setting of Open-Sora's VAE; {card.class_name} has none")

    @property
    def clips_per_call(self) -> dict[Bucket, int]:
        """The micro-batch of each bucket."""
        return dict(zip(self.buckets, self.micro_batch, strict=True))

    @property
    def bucket_groups(self) -> dict[str, tuple[Bucket, ...]]:
        """The buckets by the name of their group, in order; all under ``""`` in a recipe without groups."""
        return group_buckets(self.buckets)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups of buckets, in order; empty without groups."""
        return tuple(name for name in self.bucket_groups if name)

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
        check_recorded("the recipe", values, cls)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where the work is and how it is done. Free to change when a job is run again."""

    sources: Annotated[tuple[str, ...], Setting("source", metavar="[NAME=]URL")]
    """Tar, manifest (.parquet, .csv, .tsv, .jsonl, .json) or folder of videos; {00..99} and * expand; may be repeated."""
    output: Annotated[str, Setting(metavar="URL")]
    """Folder for the shards and their metadata."""
    vae: Annotated[str, Setting(metavar="NAME|PATH|URL")]
    """Checkpoint of the VAE, a folder or a file; or 'demo'."""
    unlisted_vae: bool = False
    """Accept a VAE whose class is not in the table of stvae/README.md; dataset.json and the report say what is assumed."""
    local: bool = False
    """Encode in this process, without Ray."""
    ray_address: Annotated[str, Setting(metavar="ADDRESS", environment="RAY_ADDRESS")] = "local"
    """Ray cluster to join; local starts one on this machine, auto joins the one that started this job."""
    actors: Annotated[int | None, Setting(default_word="auto")] = None
    """Largest number of encoders at the same time; auto is one per GPU, or on CPUs one per node."""
    gpus: Annotated[float | None, Setting(default_word="auto")] = None
    """GPUs per encoder; auto is 1 where the machine, the cluster or its autoscaler has GPUs, else 0: encode on CPUs."""
    cpus: Annotated[int | None, Setting(default_word="auto", former_word="all")] = None
    """CPUs per encoder: decoders, and compute threads if it has no GPU; auto is a GPU's part of its node, or all of it."""
    allow_other_device: bool = False
    """Go on with an output on GPUs that was begun on CPUs, or the other way around; the values differ in their last bits."""
    decode_timeout_s: float = 60.0
    """Seconds that one request to a decoding process may take before the process is killed."""
    decode_memory_bytes: Annotated[int, gigabytes("decode-memory-gb")] = 4 << 30
    """Memory that a decoding process may allocate after its start, in GB of 2^30 bytes."""
    confine: Literal["auto", "require"] = "auto"
    """Confinement of decoding processes: auto says what a machine cannot take from them; require then ends the job."""
    item_memory_bytes: Annotated[int | None, gigabytes("item-memory-gb", "auto")] = None
    """Memory for items an encoder has fetched, in GB of 2^30 bytes; more goes to TMPDIR; auto is a quarter of its memory."""
    max_rejects: float = 0.05
    """Share of rejects above which the job fails with exit code 3.

    It is judged after a few hundred windows, and at the end of a smaller job if all of its windows are rejects.
    """
    retry_rejects: Annotated[str | None, Setting(metavar="REASON|STAGE/REASON|all")] = None
    """Rejects of a finished output to try again, as its summary names them."""
    autotune: bool = False
    """Let cuDNN try its algorithms and keep the fastest; another encoder may keep another one, with other last bits."""
    single_writer: bool = False
    """Promise that no other job writes to this output, for stores that cannot create a file only if it is absent."""
    progress_timeout_s: float = 7200.0
    """Ray only: fail after this many seconds without a finished unit, for example because no node joins."""

    def __post_init__(self) -> None:
        check_positive(actors=self.actors, cpus=self.cpus, progress_timeout_s=self.progress_timeout_s)
        check_positive(item_memory_gb=self.item_memory_bytes)
        if self.gpus is not None and self.gpus < 0:
            raise ConfigError(f"--gpus must be at least 0, got {self.gpus:g}")
        check_positive(decode_timeout_s=self.decode_timeout_s, decode_memory_gb=self.decode_memory_bytes)

    @property
    def encoder_gpus(self) -> float:
        """GPUs per encoder; 0 where ``auto`` has not been replaced yet."""
        return self.gpus or 0.0

    @property
    def encoder_cpus(self) -> int:
        """CPUs per encoder; all of this machine where ``auto`` has not been replaced yet."""
        return self.cpus or available_cpus()

    @property
    def max_encoders(self) -> int:
        """Largest number of encoders at the same time; 1 where ``auto`` has not been replaced yet."""
        return self.actors or 1

    @property
    def auto_compute_dtype(self) -> Literal["bfloat16", "float32"]:
        """Data type that ``auto`` stands for in a new output."""
        return "bfloat16" if self.encoder_gpus else "float32"
