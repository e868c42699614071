"""The encoder, one per GPU: it takes a unit and commits the unit's shard.

Two units are in flight, so that one fills its micro-batches while the other ends. Children decode ahead meanwhile. See
``shard_attempt.py`` for how a unit is encoded, and ``attempts.py`` for how it is retried after a crash. The encoder knows
nothing of Ray. Torch is imported when an encoder is made, since the driver only needs the class's name.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.encode.attempts import Attempts, CrashHistory, current_node, is_node_alive
from pipeline.encode.counters import EncoderCounters
from pipeline.encode.device_queue import Slots
from pipeline.encode.micro_batches import MicroBatchEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.shard_attempt import AttemptContext, ShardAttempt
from pipeline.encode.unit_report import Heartbeat, UnitReport
from pipeline.encode.utilization import Activity, UnitActivity, Utilization
from pipeline.environment import cpu_model, describe_environment, gpu_model, is_same_environment, item_memory_bytes
from pipeline.errors import ConfigError, LatentmillError
from pipeline.output.dataset import PATH, read_dataset
from pipeline.output.shard_writer import ShardWriter
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.sources.units import Unit
from pipeline.storage.checkpoint import local_checkpoint, shown_vae
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.held_file import set_memory_budget
from pipeline.storage.store import Store
from pipeline.video.decoders import Decoders
from stvae import gc_paused, load_vae
from stvae.card import UnknownVAE
from stvae.weights import WeightsError

if TYPE_CHECKING:
    from stvae.vae import VAE

UNITS_IN_FLIGHT = 2
"""Number of units that an encoder works on at once: one fills its micro-batches while the other ends."""


class ShardEncoder:
    """Holds the VAE, the decoding children and the counters, and starts attempts at units.

    Raises ConfigError if the output or the VAE is not the one that the driver has.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.store = Store(settings.run.output, single_writer=settings.run.single_writer)
        self.notes = self._check_dataset()
        self.memory = set_memory_budget(item_memory_bytes(settings.run))
        node = current_node()
        self.attempts = Attempts(self.store, settings.job, node, is_node_alive)
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(Decoders, settings.recipe, settings.run)  # while torch is imported
            try:
                vae = self._load_vae()
            except BaseException:
                starting.result().close()
                raise
        self.card = vae.card
        self.decoders = starting.result()
        self.batches = MicroBatchEncoder(vae, settings.recipe)
        self.counters = EncoderCounters(f"{node[:12] or 'local'}-{os.getpid()}", str(self.decoders.confinement))
        self.utilization = Utilization()
        self._slots = Slots(UNITS_IN_FLIGHT)
        self._numerics = self._fix_numerics()
        self._stopped = threading.Event()

    def close(self) -> None:
        """End the decoding children and the VAE's thread, and restore PyTorch's settings."""
        self.decoders.close()
        self.batches.queue.close()
        self._numerics.close()

    def stop(self) -> None:
        """End the units in flight, and all later ones, early: their reports have the outcome ``stopped``."""
        self._stopped.set()

    def heartbeat(self) -> Heartbeat:
        """The encoder's current state."""
        return self.counters.heartbeat(self.utilization)

    def encode_unit(self, unit: Unit, ignored_attempts: Sequence[str] = ()) -> UnitReport:
        """Encode the unit and commit its shard, unless it is committed already or another job has begun it.

        ``ignored_attempts``: file names of other jobs' records that do not count.
        """
        with self.utilization.unit() as activities:
            if self._stopped.is_set():
                report = UnitReport(unit=unit.name, outcome="stopped")
            elif self.store.size(unit_metadata_path(unit.name)) is not None:
                report = UnitReport(unit=unit.name, outcome="already")
            elif self.attempts.begun_by_another_job(unit.name, ignored_attempts):
                report = UnitReport(unit=unit.name, outcome="left")
            else:
                report = self._attempt(unit, activities)
        report.ended_s = time.time()
        report.activities = dict(activities.seconds)
        report.wall_s, report.encode_s = sum(report.activities.values()), report.activities.get(Activity.ENCODE, 0.0)
        report.encoder, report.confinement = self.counters.encoder, self.counters.take_confinement()
        report.encoder_s, report.idle_s, _ = self.utilization.times()
        report.waited_s = WAITS.total_s
        self.counters.unit_ended(report.outcome)
        return report

    def _attempt(self, unit: Unit, activities: UnitActivity) -> UnitReport:
        """Make an attempt at the unit, with the records that it needs. After a crash it gets the encoder for itself."""
        history = self.attempts.crash_history(unit.name)
        activities.enter(Activity.DEVICE)
        with self._slots.reserve(UNITS_IN_FLIGHT if history.careful else 1):
            activities.enter(Activity.COMMIT)
            self.attempts.begin(unit.name, history.number)
            try:
                report = self._encode_shard(unit, history, activities)
            except LatentmillError:
                self.attempts.withdraw(unit.name, history.number)
                raise
            if report.outcome == "stopped":
                self.attempts.withdraw(unit.name, history.number)
            else:
                self.attempts.end(unit.name, history.number)
        return report

    def _encode_shard(self, unit: Unit, history: CrashHistory, activities: UnitActivity) -> UnitReport:
        recipe, columns = self.settings.recipe, self.settings.columns[unit.generation]
        with (
            self.store.scratch() as scratch,
            ShardWriter(scratch, unit, recipe, self.card, columns) as shard,
            self.counters.in_flight(unit, shard.counts) as in_flight,
        ):
            attempt = ShardAttempt(
                context=AttemptContext(
                    settings=self.settings,
                    geometry=self.card.geometry,
                    decoders=self.decoders,
                    batches=self.batches,
                    attempts=self.attempts,
                ),
                in_flight=in_flight,
                shard=shard,
                crash_history=history,
                activities=activities,
            )
            if attempt.fill(self._stopped.is_set):
                activities.enter(Activity.COMMIT)
                outcome = shard.commit(self.store, self.notes)
            else:
                outcome = "stopped"
        return UnitReport(unit=unit.name, outcome=outcome, counts=shard.counts)

    def _load_vae(self) -> VAE:
        run, recipe = self.settings.run, self.settings.recipe
        with gc_paused():
            import torch
        torch.set_num_threads(run.cpus)
        try:
            vae = load_vae(
                local_checkpoint(run.vae),
                device="cuda" if run.gpus else "cpu",
                dtype=recipe.compute_dtype,
                only="encoder",
                compiled=recipe.compile,
                autotune=run.autotune,
            )
        except (WeightsError, UnknownVAE) as error:
            raise ConfigError(f"an encoder cannot load the VAE that the driver read: {error}") from error
        if vae.card.sha256 != recipe.vae:
            raise ConfigError(
                f"the VAE at '{shown_vae(run.vae)}' on the encoder's node is not the one that the driver read: "
                "check that all nodes share this path"
            )
        gc.freeze()  # what was imported is never garbage; a search through it at the end would take a second
        return vae

    def _fix_numerics(self) -> ExitStack:
        """Set PyTorch for exact and repeatable results in this process, until the stack is closed."""
        from stvae.numerics import exact_numerics

        stack = ExitStack()
        stack.enter_context(exact_numerics(autotune=self.settings.run.autotune))
        return stack

    def _check_dataset(self) -> dict[str, str]:
        """Check that the output is the driver's. Returns what to note in unit metadata: the environment, if it is not
        the one in which the output was begun."""
        try:
            dataset = read_dataset(self.store)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.store.url}/{PATH} is not visible here: an output must be shared by all nodes"
            ) from None
        if dataset.recipe != self.settings.recipe:
            raise ConfigError(
                f"{self.store.url} on the encoder's node is not the output that the driver opened: check that all nodes "
                "share this path"
            )
        device = gpu_model() if self.settings.run.gpus else cpu_model()
        environment = describe_environment(self.settings.run, device)
        if is_same_environment(dataset.environment, environment):
            return {}
        return {"environment": json.dumps(environment, sort_keys=True)}
