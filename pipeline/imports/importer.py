"""The importer: it takes a unit of another trainer's files and commits a shard with their latents."""

from __future__ import annotations

import contextlib

from pipeline.encode.attempts import CrashHistory
from pipeline.encode.unit_encoder import UnitEncoder
from pipeline.encode.unit_report import UnitReport
from pipeline.encode.unit_text import UnitText, too_much_text, without_text
from pipeline.encode.utilization import Activity, UnitActivity
from pipeline.errors import ConfigError, Reject, Rejected, SourceChanged
from pipeline.imports.captions import read_captions
from pipeline.imports.imported_sample import ImportedSample
from pipeline.imports.placing import bucket_of, raw_latent
from pipeline.imports.settings import ImportSettings
from pipeline.imports.source_files import COLUMNS, format_of, planned_captions, read_unit
from pipeline.output.dataset import check_recipe
from pipeline.output.edits.edits import Edits
from pipeline.output.purges.unit_purge import settle_committed_unit
from pipeline.output.rows import Row
from pipeline.output.shard_writer import ShardWriter
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.store import Store
from pipeline.video.outcomes import RejectedWindow


class UnitImporter(UnitEncoder):
    """Imports units. It needs no device and has no children; its time counts as encoding, since there is nothing else."""

    def __init__(self, settings: ImportSettings) -> None:
        super().__init__(Store(settings.run.output, single_writer=settings.run.single_writer), settings.job)
        self.settings = settings
        try:
            check_recipe(self.store, settings.recipe)
        except FileNotFoundError:
            raise ConfigError(f"{self.store.url} is not visible here: an output must be shared by all nodes") from None
        self.captions = read_captions(settings.captions) if settings.captions else None
        self.become_ready()

    def close(self) -> None:
        """End the units in flight after their current sample."""
        self.stop()

    def encode_shard(self, unit: Unit, history: CrashHistory, activities: UnitActivity) -> UnitReport:
        """Import the samples of a unit and commit the shard."""
        settings, text = self.settings, UnitText()
        self._check_captions(unit)
        url = settings.urls.get(unit.source, unit.source)
        with (
            self.store.scratch() as scratch,
            ShardWriter(scratch, unit, settings.recipe, settings.card, COLUMNS) as shard,
            self.counters.in_flight(unit, shard.counts) as in_flight,
        ):
            read = read_unit(unit, url, format_of(unit), settings.recipe)
            with contextlib.closing(read), activities.encoding():
                for item, sample in read:
                    if self.is_stopped():
                        return UnitReport(unit=unit.name, outcome="stopped", counts=shard.counts)
                    in_flight.begun.add(item.ordinal)
                    self._add(shard, item, sample, text)
            activities.enter(Activity.COMMIT)
            outcome = shard.commit(self.store, {})
            if outcome == "committed":
                settle_committed_unit(self.store, unit.name, Edits())
        return UnitReport(unit=unit.name, outcome=outcome, counts=shard.counts)

    def _check_captions(self, unit: Unit) -> None:
        """Raise SourceChanged if a unit was planned with other captions, or with none."""
        planned, now = planned_captions(unit), self.captions.sha256 if self.captions else ""
        if planned != now:
            raise SourceChanged.between("the table of --captions", planned or "not given", now or "not given")

    def _add(self, shard: ShardWriter, item: Item, sample: ImportedSample | Reject, text: UnitText) -> None:
        """Write the outcome of an item to the shard."""
        if isinstance(sample, Reject):
            shard.add_reject(item, None, RejectedWindow(index=0, reject=sample))
            return
        item.caption, item.uri = sample.caption, sample.uri or item.uri
        if item.caption is None and self.captions is not None:
            item.caption = self.captions.caption_of(item.key)
        if not text.takes(item):
            outcome = RejectedWindow(index=0, reject=Reject("import", "too_much_text", ""))
            shard.add_reject(without_text(item), None, too_much_text(outcome))
            return
        try:
            latent_Cthw = raw_latent(sample, self.settings.card, self.settings.recipe.imported_latents == "normalized")
            bucket = bucket_of(sample, latent_Cthw.shape[1:], self.settings.card)
        except Rejected as rejected:
            shard.add_reject(item, None, RejectedWindow(index=0, reject=rejected.reject))
            return
        height, width = sample.src_size_hw
        columns: Row = {"src_height": height, "src_width": width}
        columns["fps"] = None if bucket.num_frames == 1 else sample.fps
        if sample.is_sample is not None:
            columns["store"] = "sample" if sample.is_sample else "mean"
        shard.add_imported(item, bucket, latent_Cthw, columns)
