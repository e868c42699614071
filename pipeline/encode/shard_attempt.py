"""An attempt at a unit, from decoded clips to its shard: micro-batches given to the codec, and what comes back stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from pipeline.encode.attempts import STRIKES, Attempts, Suspicion
from pipeline.encode.counters import InFlight
from pipeline.encode.micro_batches import BatchEncoder, Moments, Waiting
from pipeline.encode.utilization import Stage, UnitStages
from pipeline.output.shard_writer import ShardWriter
from pipeline.sources.units import Unit
from pipeline.video.decoders import Clip, Decoded, RejectedWindow


@dataclass(slots=True)
class Filling:
    """A shard on its way. While one of its micro-batches is in the codec, the next is made ready."""

    unit: Unit
    shard: ShardWriter
    suspicion: Suspicion
    stages: UnitStages
    begun: InFlight
    batches: BatchEncoder
    attempts: Attempts
    in_codec: tuple[list[Waiting], Future[dict[str, Moments | None]]] | None = None

    def encode(self, micro_batch: list[Waiting]) -> None:
        """Give a micro-batch to the codec, and store the one before it. After the encoder died over this unit: one by
        one where that may have been why, with a note of what is in flight, and without the clips known to kill it."""
        if not self.suspicion.careful:
            future = self.batches.submit(micro_batch, self.stages)
            self.store()
            self.in_codec = micro_batch, future
            return
        innocent = [clip for clip in micro_batch if clip.id not in self.suspicion.condemned]
        alone = any(clip.id in self.suspicion.suspects for clip in innocent)
        results: dict[str, Moments | None] = {}
        for clips in [[clip] for clip in innocent] if alone else [innocent] if innocent else []:
            self.attempts.note(self.unit.name, self.suspicion.number, [clip.id for clip in clips])
            results |= self.batches.submit(clips, self.stages).result()
            self.attempts.note(self.unit.name, self.suspicion.number, [])
        self._add(micro_batch, results)

    def store(self) -> None:
        """What is in the codec into the shard, when it has come back."""
        if self.in_codec is not None:
            micro_batch, future = self.in_codec
            self.in_codec = None
            self.stages.enter(Stage.DEVICE)
            results = future.result()
            self.stages.enter(Stage.PACK)
            self._add(micro_batch, results)

    def _add(self, micro_batch: list[Waiting], results: dict[str, Moments | None]) -> None:
        for clip in micro_batch:
            if clip.id in self.suspicion.condemned:
                self.shard.add_reject(clip.item, clip.facts, _deadly(clip))
            elif (moments := results[clip.id]) is None:
                self.shard.add_reject(clip.item, clip.facts, _too_large(clip))
            else:
                latents, way = moments
                self.shard.add_sample(clip.item, clip.facts, clip.clip, latents, encode_path=way)


def _too_large(waiting: Waiting) -> RejectedWindow:
    window = waiting.clip.window
    message = f"a clip of {window.bucket} does not fit the memory beside the codec; encode it in a smaller bucket"
    return RejectedWindow(index=window.index, stage="encode", kind="memory", message=message)


def _deadly(waiting: Waiting) -> RejectedWindow:
    message = f"the encoder died {STRIKES} times with this clip alone in it"
    return RejectedWindow(index=waiting.clip.window.index, stage="encode", kind="crash", message=message)


def only(outcomes: Iterator[Decoded], windows: tuple[int, ...]) -> Iterator[Decoded]:
    """Of an item's outcomes exactly one for each given window; what befell the item as a whole befell each of them."""
    left = list(windows)
    facts = None
    cause = RejectedWindow(index=0, stage="decode", kind="changed", message="the video lacks this window now")
    for facts, outcome in outcomes:
        index = outcome.window.index if isinstance(outcome, Clip) else outcome.index
        if index in left:
            left.remove(index)
            yield facts, outcome
        elif isinstance(outcome, RejectedWindow):
            cause = outcome
    for index in left:
        yield facts, dataclasses.replace(cause, index=index)
