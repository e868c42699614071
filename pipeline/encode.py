"""The encoder, one per GPU: a unit in, a committed shard out.

While one unit's micro-batches are in the codec, children decode ahead; two units are in flight, so that one fills
while the other drains. What earlier deaths of the encoder over a unit ask for, ``attempts.py`` tells. The same class runs
without Ray. Torch is imported when an encoder is made: the driver only needs the class's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pipeline.ahead import decode_in_order
from pipeline.attempts import STRIKES, Attempts, Suspicion
from pipeline.batches import BatchEncoder, Moments, Waiting
from pipeline.clips import Skip, plan_windows
from pipeline.dataset import PATH, cpu_model, describe_environment, gpu_model, read_dataset
from pipeline.decode import Decoded, Decoders, RejectedWindow
from pipeline.errors import ConfigError, Rejected
from pipeline.items import Item, fetch, items
from pipeline.plan import Unit, schema_from_text
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.retries import only
from pipeline.shards import ShardWriter, sample_id, sidecar_path
from pipeline.store import Store
from stvae import load_codec
from stvae.weights import WeightsError

UNITS_IN_FLIGHT = 2
"""Units that one encoder works on, so that one fills while the other drains."""


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of one unit in this job; the only thing that goes back to the driver."""

    unit: str
    outcome: str
    """``committed``, ``lost`` (another attempt was first), ``already`` (nothing to do) or ``left`` (to another job)."""
    samples: int = 0
    frames: int = 0
    skips: dict[str, int] = dataclasses.field(default_factory=dict)
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    wall_s: float = 0.0
    encode_s: float = 0.0
    ended_s: float = 0.0
    """Unix time at which the unit ended; 0 where it was not encoded here."""
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds by what the unit spent them on; what they leave of ``wall_s`` is the rest."""

    @property
    def windows(self) -> int:
        """Planned windows accounted for."""
        return self.samples + sum(self.skips.values()) + sum(self.rejects.values())


class Task(NamedTuple):
    """A unit for an encoder."""

    unit: Unit
    known: Sequence[str] = ()
    """Attempts of other jobs that are dead, or have had their time. A newer one's unit is left to it."""

    def pack(self) -> bytes:
        """For Ray: JSON, a tenth as long. A unit of a folder names all of its files."""
        return zlib.compress(json.dumps({"unit": self.unit.to_json(), "known": list(self.known)}).encode(), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> Task:
        """The task that ``pack`` wrote."""
        values = json.loads(zlib.decompress(packed))
        return cls(Unit.from_json(values["unit"]), values["known"])


class ShardEncoder:
    """Holds the codec and the decoding children. Raises ConfigError if the output is not the driver's."""

    def __init__(
        self, recipe: dict[str, Any], run: dict[str, Any], columns: list[str], urls: dict[str, str], job: str
    ) -> None:
        self.recipe = Recipe.from_json(recipe)
        self.run = Run.from_json(run)
        self.columns = [schema_from_text(text) for text in columns]
        self.urls = urls
        self.store = Store(self.run.output, single_writer=self.run.single_writer)
        self.notes = self._agree_with_dataset()
        self.attempts = Attempts(self.store, job, *where_this_runs())
        self.places = Places(UNITS_IN_FLIGHT)
        import torch

        torch.set_num_threads(self.run.cpus)
        device = "cuda" if self.run.gpus else "cpu"
        try:
            codec = load_codec(
                self.run.codec,
                device=device,
                dtype=self.recipe.compute_dtype,
                half="encoder",
                compiled=self.recipe.compile,
            )
        except WeightsError as error:
            raise ConfigError(f"an encoder cannot load the codec that the driver read: {error}") from error
        self.card = codec.card
        if self.card.sha256 != self.recipe.codec:
            raise ConfigError(
                f"the codec at '{self.run.codec}' is not the one that the driver read: is the path shared?"
            )
        self.batches = BatchEncoder(codec, self.recipe)
        self.decoders = Decoders(self.recipe, self.run)

    def close(self) -> None:
        """End the decoding children."""
        self.decoders.close()

    def encode_unit(self, unit: Unit, known: Sequence[str] = ()) -> Report:
        """Make the unit's shard and commit it, unless that has happened already or another job has begun it.

        ``known``: attempts of other jobs that do not count.
        """
        if self.store.size(sidecar_path(unit.name)) is not None:
            return Report(unit=unit.name, outcome="already")
        if self.attempts.of_others(unit.name, known):
            return Report(unit=unit.name, outcome="left")
        suspicion = self.attempts.suspicion(unit.name)
        with self.places.held(UNITS_IN_FLIGHT if suspicion.careful else 1):
            self.attempts.begin(unit.name, suspicion.number)
            report = self._attempt(unit, suspicion)
            self.attempts.end(unit.name, suspicion.number)
        return report

    def _attempt(self, unit: Unit, suspicion: Suspicion) -> Report:
        report = Report(unit=unit.name, outcome="committed")
        started_s = time.monotonic()
        with (
            self.store.scratch() as scratch,
            ShardWriter(scratch, unit, self.recipe, self.card, self.columns[unit.generation]) as shard,
        ):
            self._fill(shard, unit, suspicion, report)
            report.outcome = shard.commit(self.store, self.notes)
            counts = shard.counts
            report.samples, report.frames = counts.samples, counts.frames
            report.skips, report.rejects = dict(counts.skips), dict(counts.rejects)
            report.size_bytes = scratch.stat().st_size if scratch.exists() else 0
        report.wall_s, report.ended_s = time.monotonic() - started_s, time.time()
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

    def _fill(self, shard: ShardWriter, unit: Unit, suspicion: Suspicion, report: Report) -> None:
        """Every outcome of the unit's items into the shard; clips wait until their micro-batch is full."""
        waiting: dict[Bucket, list[Waiting]] = {}
        sizes = self.recipe.clips_per_call
        url = self.urls.get(unit.source, unit.source)
        found = items(unit, url, self.recipe, self.columns[unit.generation])
        wanted = {retry.ordinal: retry.windows for retry in unit.retries}
        if wanted:
            found = (item for item in found if item.ordinal in wanted)

        def decode(item: Item) -> Iterator[Decoded]:
            windows = wanted.get(item.ordinal)
            return only(self._decode(item), windows) if windows else self._decode(item)

        for item, (facts, outcome) in decode_in_order(found, decode, ahead=self.run.cpus + 1):
            if isinstance(outcome, Skip):
                shard.add_skip(item, facts, outcome)
            elif isinstance(outcome, RejectedWindow):
                shard.add_reject(item, facts, outcome)
            else:
                assert facts is not None
                clip = Waiting(item, facts, outcome, sample_id(unit, item, outcome.window.index))
                micro_batch = waiting.setdefault(outcome.window.bucket, [])
                micro_batch.append(clip)
                if len(micro_batch) == sizes[outcome.window.filled]:
                    self._encode(shard, unit, waiting.pop(outcome.window.bucket), suspicion, report)
        for micro_batch in waiting.values():
            self._encode(shard, unit, micro_batch, suspicion, report)

    def _decode(self, item: Item) -> Iterator[Decoded]:
        """Outcomes of one item's windows; whatever is wrong with the item becomes one."""
        plan = partial(plan_windows, recipe=self.recipe, geometry=self.card.geometry)
        try:
            fd = fetch(item, self.recipe)
        except Rejected as rejected:
            yield None, RejectedWindow(index=0, stage=rejected.stage, kind=rejected.kind, message=rejected.message)
            return
        with open(fd, "rb", buffering=0):
            yield from self.decoders.clips(fd, plan)

    def _encode(
        self, shard: ShardWriter, unit: Unit, micro_batch: list[Waiting], suspicion: Suspicion, report: Report
    ) -> None:
        """A micro-batch into the shard. After the encoder died over this unit: one by one where that may have been
        why, with a note of what is in flight, and without the clips that are known to kill it."""
        innocent = [clip for clip in micro_batch if clip.id not in suspicion.condemned]
        alone = any(clip.id in suspicion.suspects for clip in innocent)
        results: dict[str, Moments | None] = {}
        for clips in [[clip] for clip in innocent] if alone else [innocent] if innocent else []:
            if suspicion.careful:
                self.attempts.note(unit.name, suspicion.number, [clip.id for clip in clips])
            encoded, encode_s = self.batches.encode(clips)
            results |= encoded
            report.encode_s += encode_s
            if suspicion.careful:
                self.attempts.note(unit.name, suspicion.number, [])
        for clip in micro_batch:
            if clip.id in suspicion.condemned:
                shard.add_reject(clip.item, clip.facts, _deadly(clip))
            elif (moments := results[clip.id]) is None:
                shard.add_reject(clip.item, clip.facts, _too_large(clip))
            else:
                latents, way = moments
                shard.add_sample(clip.item, clip.facts, clip.clip, latents, encode_path=way)


def _too_large(waiting: Waiting) -> RejectedWindow:
    window = waiting.clip.window
    message = f"a clip of {window.bucket} does not fit the memory beside the codec; encode it in a smaller bucket"
    return RejectedWindow(index=window.index, stage="encode", kind="memory", message=message)


def _deadly(waiting: Waiting) -> RejectedWindow:
    message = f"the encoder died {STRIKES} times with this clip alone in it"
    return RejectedWindow(index=waiting.clip.window.index, stage="encode", kind="crash", message=message)


class Places:
    """A number of places of which some work takes one and some takes all, in the order of asking."""

    def __init__(self, number: int) -> None:
        self._free = threading.Semaphore(number)
        self._next = threading.Lock()

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[None]:
        """So many places, given back afterwards."""
        with self._next:
            for _ in range(number):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(number)


def where_this_runs() -> tuple[str, Callable[[str], bool]]:
    """The Ray node of this process (empty without Ray), and what tells whether a node is alive."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "", lambda node: False
    return ray.get_runtime_context().get_node_id(), lambda node: any(
        other["NodeID"] == node and other["Alive"] for other in ray.nodes()
    )
