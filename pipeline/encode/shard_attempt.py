"""One attempt at a unit: its items are fetched and decoded, their clips encoded, and every outcome written to a shard."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from pipeline.bucket import Bucket
from pipeline.encode.attempts import MAX_CRASHES_ALONE, Attempts, CrashHistory
from pipeline.encode.batch_pipeline import BatchPipeline
from pipeline.encode.counters import UnitInFlight
from pipeline.encode.items_of_file import WantedWindows, items_by_file
from pipeline.encode.micro_batches import DecodedClip, EncodedClip, MicroBatchEncoder
from pipeline.encode.prefetch import decode_in_order
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_text import UnitText, too_much_text, without_text
from pipeline.encode.utilization import Activity, UnitActivity
from pipeline.errors import Reject, Rejected
from pipeline.output.edits.edits import REMOVED, Edits
from pipeline.output.rows import sample_id
from pipeline.output.shard_writer import ShardWriter
from pipeline.sources.fetch import fetch, share_facts
from pipeline.sources.formats import items
from pipeline.sources.item import Item
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Decoded, Outcome, RejectedWindow
from pipeline.video.placement import crop_position
from pipeline.video.ranges import select_in_range
from pipeline.video.windows import Skip, VideoFacts
from stvae.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptContext:
    """The parts of an encoder that all of its attempts use."""

    settings: EncoderSettings
    geometry: Geometry
    """Frame and size rules of the VAE."""
    decoders: Decoders
    batches: MicroBatchEncoder
    attempts: Attempts
    edits: Edits
    """Items and samples that are removed from the output."""


@dataclass(kw_only=True, slots=True)
class ShardAttempt:
    """Fills one unit's shard. One thread calls ``fill``; while a micro-batch is in the VAE, it prepares the next one."""

    context: AttemptContext
    in_flight: UnitInFlight
    shard: ShardWriter
    crash_history: CrashHistory
    activities: UnitActivity
    _waiting: dict[tuple[Bucket, int], list[DecodedClip]] = field(default_factory=dict, init=False)
    """Clips that do not fill a micro-batch yet, by their size and the number of clips that fill one."""
    _pipeline: BatchPipeline[DecodedClip, EncodedClip | None] = field(init=False)
    _text: UnitText = field(default_factory=UnitText, init=False)
    _retried: dict[int, tuple[tuple[int, str], ...]] = field(init=False)
    """Windows to retry, each with its group, by the item's ordinal; empty unless the unit retries rejects."""

    def __post_init__(self) -> None:
        self._pipeline = BatchPipeline(
            unit=self.in_flight.unit.name,
            attempts=self.context.attempts,
            history=self.crash_history,
            activities=self.activities,
            submit=self.context.batches.submit,
            store=self._add_results,
        )
        self._retried = {retry.ordinal: retry.wanted for retry in self.in_flight.unit.retries}

    def fill(self, is_stopped: Callable[[], bool]) -> bool:
        """Write one outcome to the shard for every window of the unit's items. Returns False if it was stopped before."""
        items_ahead = self.context.settings.run.encoder_cpus + 1
        files = items_by_file(self._items())
        decoded_ahead = decode_in_order(
            files, self._decode, items_ahead, self.activities.enter, self._outcomes_of_fault
        )
        with contextlib.closing(decoded_ahead):  # its threads would wait for ever if an error left it open
            for _, (item, (facts, outcome)) in decoded_ahead:
                if is_stopped():
                    return False
                self.activities.enter(Activity.PACK)
                self.in_flight.begun.add(item.ordinal)
                self._add_outcome(item, facts, outcome)
        self.activities.enter(Activity.PACK)
        for micro_batch in self._waiting.values():
            self._pipeline.encode(micro_batch)
        self._pipeline.finish()
        return True

    def _add_outcome(self, item: Item, facts: VideoFacts | None, outcome: Outcome) -> None:
        """Write a skip or a reject to the shard, or add a clip to the micro-batch of its size."""
        if not self._text.takes(item):
            self.shard.add_reject(without_text(item), facts, too_much_text(outcome))
        elif isinstance(outcome, Skip):
            self.shard.add_skip(item, facts, outcome)
        elif isinstance(outcome, RejectedWindow):
            self.shard.add_reject(item, facts, outcome)
        else:
            assert facts is not None
            id = sample_id(self.in_flight.unit, item, outcome.window.index, outcome.window.group)
            if id in self.context.edits.ids:
                self.shard.add_reject(without_text(item), facts, RejectedWindow.of(outcome.window, REMOVED))
                return
            self._add_clip(DecodedClip(item, facts, outcome, id))

    def _items(self) -> Iterator[Item]:
        """The unit's items; only the items to retry, if the unit retries rejects."""
        unit, settings = self.in_flight.unit, self.context.settings
        url = settings.source_urls.get(unit.source, unit.source)
        found = items(unit, url, settings.recipe, settings.columns[unit.generation])
        return (self._unless_removed(item) for item in found if not self._retried or item.ordinal in self._retried)

    def _unless_removed(self, item: Item) -> Item:
        """The item; one that cannot be opened and has no text if it is removed from the output."""
        if not self.context.edits.removes_item(self.in_flight.unit.source, item.ordinal, item.key, item.uri):
            return item
        return dataclasses.replace(without_text(item), fault=REMOVED)

    def _outcomes_of_fault(self, items: list[Item]) -> list[tuple[Item, Decoded]] | None:
        """The outcomes of an item that cannot be opened, or of an empty one; None for others."""
        cannot_be_read = items[0].fault is not None or items[0].content == b""
        return list(self._decode(items, lambda: None)) if cannot_be_read else None

    def _decode(self, items: list[Item], fetched: Callable[[], None]) -> Iterator[tuple[Item, Decoded]]:
        """Outcomes of the items of one file; only those of the windows to retry, if the unit retries rejects."""
        wanted = {number: WantedWindows(self._retried.get(item.ordinal, ())) for number, item in enumerate(items)}
        for number, decoded in self._decode_file(items, fetched):
            if wanted[number].takes(decoded):
                yield items[number], decoded
        for number, item in enumerate(items):
            for decoded in wanted[number].missing():
                yield item, decoded

    def _decode_file(self, items: list[Item], fetched: Callable[[], None]) -> Iterator[tuple[int, Decoded]]:
        """Outcomes of all windows of the items of one file, each with the item's number.

        A fault of an item becomes a reject of window 0. The file is fetched and decoded once.
        """
        recipe = self.context.settings.recipe
        try:
            file = fetch(items[0], recipe)
        except Rejected as rejected:
            fetched()
            for number in range(len(items)):
                yield number, (None, RejectedWindow(index=0, reject=rejected.reject))
            return
        fetched()
        select = partial(select_in_range, recipe=recipe, geometry=self.context.geometry)
        source, ranges = self.in_flight.unit.source, [item.range for item in items]
        crops = [crop_position(recipe, source, item.ordinal, item.key) for item in items]
        selectors = [partial(select, crop=crop) for crop in crops]
        with file:
            share_facts(items[0], items[1:])
            for item in items:
                item.content = None  # it is in the file now, and clips keep their items while they wait
            yield from self.context.decoders.clips_of_ranges(file.fileno(), ranges, selectors)

    def _add_clip(self, decoded: DecodedClip) -> None:
        """Keep a clip until the micro-batch of its size is full, then encode that."""
        window = decoded.clip.window
        full = self.context.settings.recipe.clips_per_call[window.filled]
        micro_batch = self._waiting.setdefault((window.bucket, full), [])
        micro_batch.append(decoded)
        if len(micro_batch) == full:
            self._pipeline.encode(self._waiting.pop((window.bucket, full)))

    def _add_results(self, micro_batch: list[DecodedClip], results: Mapping[str, EncodedClip | None]) -> None:
        for decoded in micro_batch:
            if decoded.id in self.crash_history.skipped_ids:
                self.shard.add_reject(decoded.item, decoded.facts, _crashes_encoder(decoded.clip))
            elif (encoded := results[decoded.id]) is None:
                self.shard.add_reject(decoded.item, decoded.facts, _too_large(decoded.clip))
            else:
                self.shard.add_sample(decoded.item, decoded.facts, decoded.clip, *encoded)


def _too_large(clip: Clip) -> RejectedWindow:
    message = f"a clip of {clip.window.bucket} does not fit the memory beside the VAE; encode it in a smaller bucket"
    return RejectedWindow.of(clip.window, Reject("encode", "memory", message))


def _crashes_encoder(clip: Clip) -> RejectedWindow:
    message = f"the encoder crashed {MAX_CRASHES_ALONE} times with this clip alone in it"
    return RejectedWindow.of(clip.window, Reject("encode", "crash", message))
