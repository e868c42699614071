"""The encoder, one per GPU: a unit in, a committed shard out.

While one unit's micro-batches are in the VAE, children decode ahead; two units are in flight, so that one fills
while the other drains. What earlier deaths of the encoder over a unit ask for, ``attempts.py`` tells. The same class runs
without Ray. Torch is imported when an encoder is made: the driver only needs the class's name.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.encode.attempts import Attempts, CrashHistory, where_this_runs
from pipeline.encode.counters import EncoderCounters
from pipeline.encode.device_queue import Slots
from pipeline.encode.micro_batches import DecodedClip, MicroBatchEncoder
from pipeline.encode.prefetch import decode_in_order
from pipeline.encode.shard_attempt import ShardAttempt, only
from pipeline.encode.unit_report import UnitReport
from pipeline.encode.utilization import Activity, UnitActivity, Utilization
from pipeline.environment import cpu_model, describe_environment, gpu_model
from pipeline.errors import ConfigError, Rejected
from pipeline.output.dataset import PATH, read_dataset
from pipeline.output.rows import sample_id
from pipeline.output.shard_writer import ShardWriter
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.sources.fetch import fetch
from pipeline.sources.formats import items
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.parquet import schema_from_text
from pipeline.storage.store import Store
from pipeline.video.decoders import Decoded, Decoders, RejectedWindow
from pipeline.video.windows import Skip, select_windows
from stvae import gc_paused, load_vae
from stvae.weights import WeightsError

if TYPE_CHECKING:
    from stvae.vae import VAE

UNITS_IN_FLIGHT = 2
"""Units that one encoder works on, so that one fills while the other drains."""


class ShardEncoder:
    """Holds the VAE and the decoding children. Raises ConfigError if the output is not the driver's."""

    def __init__(
        self, recipe: dict[str, Any], run: dict[str, Any], columns: list[str], urls: dict[str, str], job: str
    ) -> None:
        self.recipe = Recipe.from_json(recipe)
        self.run = Run.from_json(run)
        self.columns = [schema_from_text(text) for text in columns]
        self.urls = urls
        self.store = Store(self.run.output, single_writer=self.run.single_writer)
        self.notes = self._agree_with_dataset()
        node, is_alive = where_this_runs()
        self.attempts = Attempts(self.store, job, node, is_alive)
        self.places = Slots(UNITS_IN_FLIGHT)
        with ThreadPoolExecutor(1) as pool:
            decoders = pool.submit(Decoders, self.recipe, self.run)  # they start while torch is imported
            try:
                vae = self._load_vae()
            except BaseException:
                decoders.result().close()
                raise
        self.card = vae.card
        self.batches = MicroBatchEncoder(vae, self.recipe)
        self.decoders = decoders.result()
        self.tally = EncoderCounters(f"{node[:12] or 'local'}-{os.getpid()}")
        self.occupancy = Utilization()

    def close(self) -> None:
        """End the decoding children and the VAE's thread."""
        self.decoders.close()
        self.batches.device.close()

    def pulse(self) -> dict[str, Any]:
        """What this encoder does now, as ``EncoderCounters.pulse`` tells it."""
        return self.tally.pulse(self.occupancy)

    def encode_unit(self, unit: Unit, known: Sequence[str] = ()) -> UnitReport:
        """Make the unit's shard and commit it, unless that has happened already or another job has begun it.

        ``known``: attempts of other jobs that do not count.
        """
        with self.occupancy.unit() as activities:
            if self.store.size(unit_metadata_path(unit.name)) is not None:
                report = UnitReport(unit=unit.name, outcome="already")
            elif self.attempts.of_others(unit.name, known):
                report = UnitReport(unit=unit.name, outcome="left")
            else:
                crash_history = self.attempts.crash_history(unit.name)
                activities.enter(Activity.DEVICE)
                with self.places.held(UNITS_IN_FLIGHT if crash_history.careful else 1):
                    activities.enter(Activity.COMMIT)
                    self.attempts.begin(unit.name, crash_history.number)
                    report = self._attempt(unit, crash_history, activities)
                    self.attempts.end(unit.name, crash_history.number)
        report.ended_s = time.time()
        report.activities = dict(activities.seconds)
        report.wall_s, report.encode_s = sum(report.activities.values()), report.activities.get(Activity.ENCODE, 0.0)
        report.encoder = self.tally.encoder
        report.encoder_s, report.idle_s, _ = self.occupancy.seconds()
        self.tally.end(report.outcome, report.size_bytes if report.outcome == "committed" else 0)
        return report

    def _attempt(self, unit: Unit, crash_history: CrashHistory, activities: UnitActivity) -> UnitReport:
        report = UnitReport(unit=unit.name, outcome="committed")
        with (
            self.store.scratch() as scratch,
            ShardWriter(scratch, unit, self.recipe, self.card, self.columns[unit.generation]) as shard,
            self.tally.in_flight(unit, shard.counts) as begun,
        ):
            self._fill(ShardAttempt(unit, shard, crash_history, activities, begun, self.batches, self.attempts))
            activities.enter(Activity.COMMIT)
            report.outcome = shard.commit(self.store, self.notes)
            counts = shard.counts
            report.samples, report.frames = counts.samples, counts.frames
            report.skips, report.rejects = dict(counts.skips), dict(counts.rejects)
            report.size_bytes = shard.size_bytes
        return report

    def _load_vae(self) -> VAE:
        with gc_paused():
            import torch
        torch.set_num_threads(self.run.cpus)
        try:
            vae = load_vae(
                self.run.vae,
                device="cuda" if self.run.gpus else "cpu",
                dtype=self.recipe.compute_dtype,
                only="encoder",
                compiled=self.recipe.compile,
            )
        except WeightsError as error:
            raise ConfigError(f"an encoder cannot load the VAE that the driver read: {error}") from error
        if vae.card.sha256 != self.recipe.vae:
            raise ConfigError(f"the VAE at '{self.run.vae}' is not the one that the driver read: is the path shared?")
        gc.freeze()  # nothing that was imported will ever be garbage; to look it through again at the end takes a second
        return vae

    def _agree_with_dataset(self) -> dict[str, str]:
        """What to note in the unit metadata: the environment, if it is not the one that the output was begun in."""
        try:
            dataset = read_dataset(self.store)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.store.url}/{PATH} is not visible here: an output must be shared by all nodes"
            ) from None
        if dataset.recipe != self.recipe:
            raise ConfigError(f"{self.store.url} here is not the output that the driver opened: is the path shared?")
        device = gpu_model() if self.run.gpus else cpu_model()
        environment = describe_environment(self.run, device)
        return {} if environment == dataset.environment else {"environment": json.dumps(environment, sort_keys=True)}

    def _fill(self, filling: ShardAttempt) -> None:
        """Every outcome of the unit's items into the shard; clips wait until their micro-batch is full."""
        unit, shard = filling.unit, filling.shard
        waiting: dict[Bucket, list[DecodedClip]] = {}
        sizes = self.recipe.clips_per_call
        url = self.urls.get(unit.source, unit.source)
        found = items(unit, url, self.recipe, self.columns[unit.generation])
        wanted = {retry.ordinal: retry.windows for retry in unit.retries}
        if wanted:
            found = (item for item in found if item.ordinal in wanted)

        def decode(item: Item, fetched: Callable[[], None]) -> Iterator[Decoded]:
            windows = wanted.get(item.ordinal)
            return only(self._decode(item, fetched), windows) if windows else self._decode(item, fetched)

        for item, (facts, outcome) in decode_in_order(found, decode, self.run.cpus + 1, filling.activities.enter):
            filling.activities.enter(Activity.PACK)
            filling.begun.ordinal = item.ordinal
            if isinstance(outcome, Skip):
                shard.add_skip(item, facts, outcome)
            elif isinstance(outcome, RejectedWindow):
                shard.add_reject(item, facts, outcome)
            else:
                assert facts is not None
                clip = DecodedClip(item, facts, outcome, sample_id(unit, item, outcome.window.index))
                micro_batch = waiting.setdefault(outcome.window.bucket, [])
                micro_batch.append(clip)
                if len(micro_batch) == sizes[outcome.window.filled]:
                    filling.encode(waiting.pop(outcome.window.bucket))
        filling.activities.enter(Activity.PACK)
        for micro_batch in waiting.values():
            filling.encode(micro_batch)
        filling.store()

    def _decode(self, item: Item, fetched: Callable[[], None]) -> Iterator[Decoded]:
        """Outcomes of one item's windows; whatever is wrong with the item becomes one."""
        plan = partial(select_windows, recipe=self.recipe, geometry=self.card.geometry)
        try:
            fd = fetch(item, self.recipe)
        except Rejected as rejected:
            fetched()
            yield None, RejectedWindow(index=0, reject=rejected.reject)
            return
        fetched()
        with open(fd, "rb", buffering=0):
            yield from self.decoders.clips(fd, plan)
