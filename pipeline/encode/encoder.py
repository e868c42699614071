"""The encoder, one per GPU: it takes a unit and commits the unit's shard.

Two units are in flight, so that one fills its micro-batches while the other ends. Children decode ahead meanwhile. See
``shard_attempt.py`` for how a unit is encoded, and ``attempts.py`` for how it is retried after a crash. The encoder knows
nothing of Ray. Torch is imported when an encoder is made, since the driver only needs the class's name.
"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.encode.attempts import CrashHistory
from pipeline.encode.micro_batches import MicroBatchEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.shard_attempt import AttemptContext, ShardAttempt
from pipeline.encode.unit_encoder import UnitEncoder
from pipeline.encode.unit_report import UnitReport
from pipeline.encode.utilization import Activity, UnitActivity
from pipeline.environment import cpu_model, describe_environment, gpu_model, item_memory_bytes
from pipeline.errors import ConfigError
from pipeline.output.dataset import PATH, read_dataset
from pipeline.output.edits.edits import Edits, newest_edits
from pipeline.output.purges.unit_purge import settle_committed_unit
from pipeline.output.shard_writer import ShardWriter
from pipeline.sources.units import Unit
from pipeline.storage.checkpoint import local_checkpoint, shown_vae
from pipeline.storage.held_file import set_memory_budget
from pipeline.storage.store import Store
from pipeline.video.decoders import Decoders
from stvae import gc_paused, load_vae
from stvae.card import UnknownVAE
from stvae.weights import WeightsError

if TYPE_CHECKING:
    from stvae.vae import VAE


class ShardEncoder(UnitEncoder):
    """Encodes clips: holds the VAE and the decoding children.

    Raises ConfigError if the output or the VAE is not the one that the driver has.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(Store(settings.run.output, single_writer=settings.run.single_writer), settings.job)
        self.settings = settings
        self.notes = self._check_dataset()
        self.memory = set_memory_budget(item_memory_bytes(settings.run))
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
        self._numerics = self.fix_numerics(autotune=self.settings.run.autotune)
        self.become_ready(str(self.decoders.confinement))

    def close(self) -> None:
        """End the decoding children and the VAE's thread, and restore PyTorch's settings."""
        self.decoders.close()
        self.batches.queue.close()
        self._numerics.close()

    def encode_shard(self, unit: Unit, history: CrashHistory, activities: UnitActivity) -> UnitReport:
        """Decode the unit's items, encode their clips and commit the shard.

        If an edit meanwhile removes rows of the unit, the unit is made again, as if the edit had been there before.
        """
        edits = newest_edits(self.store)
        while True:
            outcome = self._encode_shard(unit, history, activities, edits)
            if isinstance(outcome, UnitReport):
                return outcome
            edits = outcome

    def _encode_shard(
        self, unit: Unit, history: CrashHistory, activities: UnitActivity, edits: Edits
    ) -> UnitReport | Edits:
        """Make the unit without what ``edits`` removes. Returns newer edits instead of a report if they change its rows."""
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
                    edits=edits,
                ),
                in_flight=in_flight,
                shard=shard,
                crash_history=history,
                activities=activities,
            )
            if attempt.fill(self.is_stopped):
                activities.enter(Activity.COMMIT)
                newer = edits

                def is_outdated() -> bool:
                    nonlocal newer
                    newer = newest_edits(self.store, newer)
                    return newer.changes(shard.rows(), edits)

                outcome = "outdated" if is_outdated() else shard.commit(self.store, self.notes, is_outdated)
                if outcome == "outdated":
                    return newer
                if outcome == "committed":
                    settle_committed_unit(self.store, unit.name, newer)
            else:
                outcome = "stopped"
        return UnitReport(unit=unit.name, outcome=outcome, counts=shard.counts)

    def _load_vae(self) -> VAE:
        run, recipe = self.settings.run, self.settings.recipe
        with gc_paused():
            import torch
        torch.set_num_threads(run.encoder_cpus)
        try:
            vae = load_vae(
                local_checkpoint(run.vae),
                device="cuda" if run.encoder_gpus else "cpu",
                dtype=recipe.compute_dtype,
                only="encoder",
                compiled=recipe.compile,
                autotune=run.autotune,
                unlisted=run.unlisted_vae,
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
        device = gpu_model() if self.settings.run.encoder_gpus else cpu_model()
        environment = describe_environment(self.settings.run, device)
        return self.environment_note(dataset.environment, environment)
