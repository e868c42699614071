"""The encoder of strings, one per GPU: it takes a unit of a text layer and commits the unit's shard."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from pipeline.encode.attempts import MAX_CRASHES_ALONE, CrashHistory
from pipeline.encode.batch_pipeline import BatchPipeline
from pipeline.encode.device_queue import DeviceQueue
from pipeline.encode.unit_encoder import UnitEncoder
from pipeline.encode.unit_report import UnitReport
from pipeline.encode.utilization import Activity, UnitActivity
from pipeline.environment import cpu_model, gpu_model
from pipeline.errors import ConfigError, Reject
from pipeline.output.layers.text_layer import NULL_ROW_ID, PATH, TextLayer, read_text_layer, strings_path
from pipeline.output.purges.text_purge import settle_text_unit
from pipeline.sources.units import Unit
from pipeline.storage.checkpoint import shown_vae
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from pipeline.text.encoder import EmbeddedText, TextEncoder
from pipeline.text.encoders.opening import load_text_encoder
from pipeline.text.settings import TextSettings, describe_text_environment
from pipeline.text.string_batches import PlannedString, form_batches
from pipeline.text.string_writer import StringWriter
from stvae import gc_paused
from stvae.memory import is_out_of_memory, release_memory

TOO_LARGE = Reject("encode", "memory", "the string does not fit the memory beside the text encoder")
CRASHES = Reject("encode", "crash", f"the encoder crashed {MAX_CRASHES_ALONE} times with this string alone in it")


class Embedded(NamedTuple):
    """The encoder's result for one string."""

    arrays: EmbeddedText
    encode_path: str
    """How it was encoded: ``whole`` in its batch, or in a ``part`` of it because memory ran out."""


class StringEncoder(UnitEncoder):
    """Embeds strings: holds a text encoder on its device.

    Raises ConfigError if the layer or the encoder is not the one that the driver has.
    """

    def __init__(self, settings: TextSettings) -> None:
        super().__init__(settings.open_layer(), settings.job)
        self.settings = settings
        self.layer = self._check_layer()
        self.encoder = self._load()
        self.queue = DeviceQueue()
        self._numerics = self.fix_numerics(autotune=self.settings.run.autotune)
        self.become_ready()

    def close(self) -> None:
        """End the encoder's thread, and restore PyTorch's settings."""
        self.queue.close()
        self._numerics.close()

    def encode_shard(self, unit: Unit, history: CrashHistory, activities: UnitActivity) -> UnitReport:
        """Embed the strings of a unit and commit the shard."""
        activities.enter(Activity.FETCH)
        strings = read_parquet(self.store.get(strings_path(unit.name)))
        planned = strings["text_id"].to_pylist()
        ids, texts = list(planned), [tuple(texts) for texts in strings["texts"].to_pylist()]
        with (
            self.store.scratch() as scratch,
            StringWriter(scratch, unit, self.layer) as shard,
            self.counters.in_flight(unit, shard.counts) as in_flight,
        ):
            activities.enter(Activity.PACK)
            if NULL_ROW_ID in ids:
                place = ids.index(NULL_ROW_ID)
                del ids[place], texts[place]
                null = self.queue.submit(activities.number, self.encoder.encode_null)
                shard.add_string(NULL_ROW_ID, None, null.result(), "whole")
            pipeline: BatchPipeline[PlannedString, Embedded | None] = BatchPipeline(
                unit=unit.name,
                attempts=self.attempts,
                history=history,
                activities=activities,
                submit=self.submit,
                store=partial(_add_results, shard, history),
            )
            for batch in form_batches(ids, self.encoder.tokenize(texts), self.layer.recipe):
                if self.is_stopped():
                    return UnitReport(unit=unit.name, outcome="stopped", counts=shard.counts)
                in_flight.begun.update(range(len(in_flight.begun), len(in_flight.begun) + len(batch)))
                pipeline.encode(batch)
            pipeline.finish()
            activities.enter(Activity.COMMIT)
            outcome = shard.commit(self.store, self.notes)
            if outcome == "committed":
                settle_text_unit(Store(self.settings.run.output), self.store, unit.name, planned)
        return UnitReport(unit=unit.name, outcome=outcome, counts=shard.counts)

    def submit(self, batch: list[PlannedString], activities: UnitActivity) -> Future[dict[str, Embedded | None]]:
        """Embed strings of one padded length; results by text id, None for a string that does not fit the memory."""

        def call() -> dict[str, Embedded | None]:
            with activities.encoding():
                whole = self._embed(batch, batch[0].batch_size)
                return self._embed_parts(batch) if whole is None else dict(zip(_ids(batch), whole, strict=True))

        return self.queue.submit(activities.number, call)

    def _embed_parts(self, batch: list[PlannedString]) -> dict[str, Embedded | None]:
        """Embed a batch that does not fit the memory in halves, as often as needed."""
        if len(batch) == 1:
            alone = self._embed(batch, 1)
            return {batch[0].id: alone[0] if alone is not None else None}
        results: dict[str, Embedded | None] = {}
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            embedded = self._embed(half, len(half))
            results |= self._embed_parts(half) if embedded is None else dict(zip(_ids(half), embedded, strict=True))
        return results

    def _embed(self, batch: list[PlannedString], size: int) -> list[Embedded] | None:
        """Embed a batch, with blank rows up to ``size``; None if memory runs out."""
        blanks = [self._blank] * (size - len(batch))
        path = "whole" if size == batch[0].batch_size else "part"
        try:
            arrays = self.encoder.encode([*(string.tokens for string in batch), *blanks], batch[0].padded_length)
            return [Embedded(text, path) for text in arrays[: len(batch)]]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        return None

    def _load(self) -> TextEncoder:
        settings = self.settings
        with gc_paused():
            import torch
        torch.set_num_threads(settings.run.encoder_cpus)
        device = "cuda" if settings.run.encoder_gpus else "cpu"
        dtype = settings.recipe.compute_dtype
        encoder = load_text_encoder(settings.encoder, settings.options, device, dtype)
        if encoder.card != self.layer.card:
            raise ConfigError(
                f"the text encoder at '{shown_vae(settings.encoder)}' on the encoder's node is not the one that the driver "
                "read: check that all nodes share this path"
            )
        (self._blank,) = encoder.tokenize([encoder.render("")])
        gc.freeze()  # what was imported is never garbage; a search through it at the end would take a second
        return encoder

    def _check_layer(self) -> TextLayer:
        """Check that the layer is the driver's, and note the environment if it is not the one in which it was begun."""
        run = self.settings.run
        try:
            layer = read_text_layer(self.store)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.store.url}/{PATH} is not visible here: an output must be shared by all nodes"
            ) from None
        if layer.recipe != self.settings.recipe:
            raise ConfigError(
                f"{self.store.url} on the encoder's node is not the layer that the driver opened: check that all nodes "
                "share this path"
            )
        environment = describe_text_environment(run, gpu_model() if run.encoder_gpus else cpu_model())
        self.notes = self.environment_note(layer.environment, environment)
        return layer


def _ids(batch: list[PlannedString]) -> list[str]:
    return [string.id for string in batch]


def _add_results(
    shard: StringWriter, history: CrashHistory, batch: list[PlannedString], results: Mapping[str, Embedded | None]
) -> None:
    for string in batch:
        if string.id in history.skipped_ids:
            shard.add_reject(string.id, string.tokens, CRASHES)
        elif (embedded := results[string.id]) is None:
            shard.add_reject(string.id, string.tokens, TOO_LARGE)
        else:
            shard.add_string(string.id, string.tokens, *embedded)
