"""The encoder that Ray Data holds as an actor, one per GPU: a unit in, a committed shard out.

While one unit's micro-batches are in the codec, children decode ahead; two units are in flight, so that one fills
while the other drains. The same class runs without Ray. Torch is imported when an encoder is made: the driver only
needs the class's name.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import Full, Queue
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clips import Skip, VideoFacts, plan_windows
from pipeline.dataset import PATH, cpu_model, describe_environment, gpu_model, read_dataset
from pipeline.decode import Clip, Decoded, Decoders, RejectedWindow
from pipeline.errors import ConfigError, Rejected
from pipeline.items import Item, fetch, items
from pipeline.plan import Unit, schema_from_text
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.shards import ShardWriter, sample_id, sidecar_path
from pipeline.store import Store
from stvae import load_codec
from stvae.memory import is_out_of_memory, release_memory

Array = npt.NDArray[np.float32]
CLIPS_AHEAD = 2
"""Decoded clips that wait per video in flight."""


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of one unit in this job; the only thing that goes back to the driver."""

    unit: str
    outcome: str
    """``committed``, ``lost`` (another attempt committed first) or ``already`` (nothing to do)."""
    samples: int = 0
    frames: int = 0
    skips: dict[str, int] = dataclasses.field(default_factory=dict)
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    wall_s: float = 0.0
    encode_s: float = 0.0

    @property
    def windows(self) -> int:
        """Planned windows accounted for."""
        return self.samples + sum(self.skips.values()) + sum(self.rejects.values())


class ShardEncoder:
    """Holds the codec and the decoding children. Raises ConfigError if the output is not the driver's."""

    def __init__(self, recipe: dict[str, Any], run: dict[str, Any], columns: list[str], urls: dict[str, str]) -> None:
        self.recipe = Recipe.from_json(recipe)
        self.run = Run.from_json(run)
        self.columns = [schema_from_text(text) for text in columns]
        self.urls = urls
        self.store = Store(self.run.output, single_writer=self.run.single_writer)
        self.notes = self._agree_with_dataset()
        import torch

        torch.set_num_threads(self.run.cpus)
        device = "cuda" if self.run.gpus else "cpu"
        self.codec = load_codec(
            self.run.codec,
            device=device,
            dtype=self.recipe.compute_dtype,
            half="encoder",
            compiled=self.recipe.compile,
        )
        if self.codec.card.sha256 != self.recipe.codec:
            raise ConfigError(
                f"the codec at '{self.run.codec}' is not the one that the driver read: is the path shared?"
            )
        self.decoders = Decoders(self.recipe, self.run)
        self.device = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """For Ray Data: a batch of units as JSON to reports as JSON."""
        reports = [self.encode_unit(Unit.from_json(json.loads(text))) for text in batch["unit"]]
        return {"report": [json.dumps(dataclasses.asdict(report)) for report in reports]}

    def close(self) -> None:
        """End the decoding children."""
        self.decoders.close()

    def encode_unit(self, unit: Unit) -> Report:
        """Make the unit's shard and commit it, unless that has happened already."""
        report = Report(unit=unit.name, outcome="already")
        if self.store.size(sidecar_path(unit.name)) is not None:
            return report
        started_s = time.monotonic()
        with (
            self.store.scratch() as scratch,
            ShardWriter(scratch, unit, self.recipe, self.codec.card, self.columns[unit.generation]) as shard,
        ):
            self._fill(shard, unit, report)
            report.outcome = shard.commit(self.store, self.notes)
            counts = shard.counts
            report.samples, report.frames = counts.samples, counts.frames
            report.skips, report.rejects = dict(counts.skips), dict(counts.rejects)
            report.size_bytes = scratch.stat().st_size if scratch.exists() else 0
        report.wall_s = time.monotonic() - started_s
        return report

    def _agree_with_dataset(self) -> dict[str, str]:
        """What to note in the sidecars: the environment, where it is not the one the output was begun in."""
        try:
            dataset = read_dataset(self.store)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.store.url}/{PATH} is not visible here: an output must be shared by all nodes"
            ) from None
        if dataset.recipe.fingerprint != self.recipe.fingerprint:
            raise ConfigError(f"{self.store.url} here is not the output that the driver opened: is the path shared?")
        device = gpu_model() if self.run.gpus else cpu_model()
        environment = describe_environment(self.run, device)
        return {} if environment == dataset.environment else {"environment": json.dumps(environment, sort_keys=True)}

    def _fill(self, shard: ShardWriter, unit: Unit, report: Report) -> None:
        """Every outcome of the unit's items into the shard; clips wait until their micro-batch is full."""
        waiting: dict[Bucket, list[tuple[Item, VideoFacts, Clip]]] = {}
        sizes = self.recipe.clips_per_call
        url = self.urls.get(unit.source, unit.source)
        found = items(unit, url, self.recipe, self.columns[unit.generation])
        for item, (facts, outcome) in decode_in_order(found, self._decode, ahead=self.run.cpus + 1):
            if isinstance(outcome, Skip):
                shard.add_skip(item, facts, outcome)
            elif isinstance(outcome, RejectedWindow):
                shard.add_reject(item, facts, outcome)
            else:
                assert facts is not None
                micro_batch = waiting.setdefault(outcome.window.bucket, [])
                micro_batch.append((item, facts, outcome))
                if len(micro_batch) == sizes[outcome.window.filled]:
                    self._encode(shard, unit, waiting.pop(outcome.window.bucket), report)
        for micro_batch in waiting.values():
            self._encode(shard, unit, micro_batch, report)

    def _decode(self, item: Item) -> Iterator[Decoded]:
        """Outcomes of one item's windows; whatever is wrong with the item becomes one."""
        plan = partial(plan_windows, recipe=self.recipe, geometry=self.codec.card.geometry)
        try:
            fd = fetch(item, self.recipe)
        except Rejected as rejected:
            yield None, RejectedWindow(index=0, stage=rejected.stage, kind=rejected.kind, message=rejected.message)
            return
        with open(fd, "rb", buffering=0):
            yield from self.decoders.clips(fd, plan)

    def _encode(
        self, shard: ShardWriter, unit: Unit, micro_batch: list[tuple[Item, VideoFacts, Clip]], report: Report
    ) -> None:
        """One call of the codec; the batch always has the recipe's shape, since a convolution's last bits depend on it."""
        window = micro_batch[0][2].window
        bucket = window.bucket
        size = self.recipe.clips_per_call[window.filled]
        pixels = np.zeros((size, bucket.num_frames, bucket.height, bucket.width, 3), dtype=np.uint8)
        for row, (_, _, clip) in zip(pixels, micro_batch, strict=False):
            row[:] = clip.frames_THWC
        seeds = None
        if self.recipe.spatial_posterior == "sample":
            ids = [sample_id(unit, item, clip.window.index) for item, _, clip in micro_batch]
            seeds = [int(name[:15], 16) for name in ids] + [0] * (size - len(ids))
        wanted = {"latent": pixels} | {
            name: np.ascontiguousarray(pixels[:, [place]]) for name, place in self.recipe.conditioning_frames.items()
        }
        members: dict[str, tuple[Array, str]] = {}
        for name, part in wanted.items():
            encoded = self._moments(part, len(micro_batch), seeds, report)
            if encoded is None:
                for item, facts, clip in micro_batch:
                    shard.add_reject(item, facts, _too_large(clip))
                return
            members[name] = encoded
        channels = self.codec.card.latent_channels if self.recipe.store == "mean" else None
        for i, (item, facts, clip) in enumerate(micro_batch):
            latents = {name: moments[i, :channels] for name, (moments, _) in members.items()}
            shard.add_sample(item, facts, clip, latents, encode_path=members["latent"][1])

    def _moments(
        self, pixels_BTHWC: npt.NDArray[np.uint8], count: int, seeds: list[int] | None, report: Report
    ) -> tuple[Array, str] | None:
        """Moments of the first ``count`` clips, and how: ``whole``; where memory does not suffice clip by clip
        (``single``), then in tiles if the codec can (``tiled``); None where nothing helps."""
        import torch

        on_device = self.codec.upload(torch.from_numpy(pixels_BTHWC).permute(0, 4, 1, 2, 3))
        ways = ["whole", *(["single"] if len(pixels_BTHWC) > 1 else []), *(["tiled"] if self.codec.can_tile else [])]
        with self.device:
            started_s = time.monotonic()
            for way in ways:
                calls = [slice(None)] if way == "whole" else [slice(i, i + 1) for i in range(count)]
                try:
                    parts = [
                        self.codec.encode(
                            on_device[call], noise_seeds=seeds and seeds[call], tiled=way == "tiled"
                        ).cpu()
                        for call in calls
                    ]
                    report.encode_s += time.monotonic() - started_s
                    return torch.cat(parts).numpy(), way
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                release_memory()
        return None


def _too_large(clip: Clip) -> RejectedWindow:
    message = f"a clip of {clip.window.bucket} does not fit the memory beside the codec; encode it in a smaller bucket"
    return RejectedWindow(index=clip.window.index, stage="encode", kind="memory", message=message)


def decode_in_order(
    found: Iterator[Item], decode: Callable[[Item], Iterator[Decoded]], ahead: int
) -> Iterator[tuple[Item, Decoded]]:
    """Outcomes of every item in order, with ``ahead`` items being decoded at once and a few clips of each waiting."""
    stop = threading.Event()
    lanes: deque[tuple[Item, Queue[Decoded | BaseException | None]]] = deque()

    def put(lane: Queue[Decoded | BaseException | None], value: Decoded | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return lane.put(value, timeout=0.2)
            except Full:
                continue

    def work(item: Item, lane: Queue[Decoded | BaseException | None]) -> None:
        try:
            for decoded in decode(item):
                put(lane, decoded)
                if stop.is_set():
                    return
            put(lane, None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(lane, error)

    def drain() -> Iterator[tuple[Item, Decoded]]:
        item, lane = lanes.popleft()
        while (value := lane.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield item, value

    with ThreadPoolExecutor(ahead) as pool:
        try:
            for item in found:
                lane: Queue[Decoded | BaseException | None] = Queue(CLIPS_AHEAD)
                lanes.append((item, lane))
                pool.submit(work, item, lane)
                if len(lanes) == ahead:
                    yield from drain()
            while lanes:
                yield from drain()
        finally:
            stop.set()
