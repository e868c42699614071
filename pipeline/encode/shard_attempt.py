"""An attempt at a unit, from decoded clips to its shard: micro-batches given to the VAE, and what comes back stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from pipeline.encode.attempts import MAX_CRASHES_ALONE, Attempts, CrashHistory
from pipeline.encode.counters import InFlight
from pipeline.encode.micro_batches import DecodedClip, MicroBatchEncoder, Moments
from pipeline.encode.utilization import Activity, UnitActivity
from pipeline.errors import Reject
from pipeline.output.shard_writer import ShardWriter
from pipeline.sources.units import Unit
from pipeline.video.decoders import Clip, Decoded, RejectedWindow


@dataclass(slots=True)
class ShardAttempt:
    """A shard on its way. While one of its micro-batches is in the VAE, the next is made ready."""

    unit: Unit
    shard: ShardWriter
    crash_history: CrashHistory
    activities: UnitActivity
    begun: InFlight
    batches: MicroBatchEncoder
    attempts: Attempts
    in_vae: tuple[list[DecodedClip], Future[dict[str, Moments | None]]] | None = None

    def encode(self, micro_batch: list[DecodedClip]) -> None:
        """Give a micro-batch to the VAE, and store the one before it. After the encoder died over this unit: one by
        one where that may have been why, with a note of what is in flight, and without the clips known to kill it."""
        if not self.crash_history.careful:
            future = self.batches.submit(micro_batch, self.activities)
            self.store()
            self.in_vae = micro_batch, future
            return
        innocent = [clip for clip in micro_batch if clip.id not in self.crash_history.skipped_ids]
        alone = any(clip.id in self.crash_history.isolate for clip in innocent)
        results: dict[str, Moments | None] = {}
        for clips in [[clip] for clip in innocent] if alone else [innocent] if innocent else []:
            self.attempts.note(self.unit.name, self.crash_history.number, [clip.id for clip in clips])
            results |= self.batches.submit(clips, self.activities).result()
            self.attempts.note(self.unit.name, self.crash_history.number, [])
        self._add(micro_batch, results)

    def store(self) -> None:
        """What is in the VAE into the shard, when it has come back."""
        if self.in_vae is not None:
            micro_batch, future = self.in_vae
            self.in_vae = None
            self.activities.enter(Activity.DEVICE)
            results = future.result()
            self.activities.enter(Activity.PACK)
            self._add(micro_batch, results)

    def _add(self, micro_batch: list[DecodedClip], results: dict[str, Moments | None]) -> None:
        for clip in micro_batch:
            if clip.id in self.crash_history.skipped_ids:
                self.shard.add_reject(clip.item, clip.facts, _deadly(clip))
            elif (moments := results[clip.id]) is None:
                self.shard.add_reject(clip.item, clip.facts, _too_large(clip))
            else:
                latents, way = moments
                self.shard.add_sample(clip.item, clip.facts, clip.clip, latents, encode_path=way)


def _too_large(waiting: DecodedClip) -> RejectedWindow:
    window = waiting.clip.window
    message = f"a clip of {window.bucket} does not fit the memory beside the VAE; encode it in a smaller bucket"
    return RejectedWindow(index=window.index, reject=Reject("encode", "memory", message))


def _deadly(waiting: DecodedClip) -> RejectedWindow:
    message = f"the encoder died {MAX_CRASHES_ALONE} times with this clip alone in it"
    return RejectedWindow(index=waiting.clip.window.index, reject=Reject("encode", "crash", message))


def only(outcomes: Iterator[Decoded], windows: tuple[int, ...]) -> Iterator[Decoded]:
    """Of an item's outcomes exactly one for each given window; what befell the item as a whole befell each of them."""
    left = list(windows)
    facts = None
    cause = RejectedWindow(index=0, reject=Reject("decode", "changed", "the video lacks this window now"))
    for facts, outcome in outcomes:
        index = outcome.window.index if isinstance(outcome, Clip) else outcome.index
        if index in left:
            left.remove(index)
            yield facts, outcome
        elif isinstance(outcome, RejectedWindow):
            cause = outcome
    for index in left:
        yield facts, dataclasses.replace(cause, index=index)
