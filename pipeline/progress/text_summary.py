"""Summary of a text job: the contents of its layer, and what to do next."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from pipeline.progress.advice import string_advice
from pipeline.progress.formatting import byte_size, elapsed, number, percent
from pipeline.progress.progress import Progress
from pipeline.progress.reject_limit import too_many_rejects
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store
from pipeline.text.statistics import TextStatistics
from pipeline.visible import visible

PATH = "summary.json"
MAX_LINE_CHARACTERS = 160


@dataclass(kw_only=True, slots=True)
class TextSummary:
    """Contents of a layer after a job, or the counts of a job that stopped because of rejects."""

    layer: str
    """URL of the layer."""
    recipe: str
    encoder: str
    """Family of the text encoder."""
    exit_code: int
    finished: bool
    units: int
    units_done_now: int
    embedded_now: int
    """Number of strings that this run embedded."""
    elapsed_s: float
    size_bytes: int = 0
    """Size of the shards."""
    statistics: TextStatistics = field(default_factory=TextStatistics)
    notes: list[str] = field(default_factory=list)

    def save(self, store: Store) -> None:
        """Write ``summary.json`` of the layer; replaces that of an earlier job."""
        saved = {
            "saved_by_trimming_bytes": self.statistics.saved_by_trimming_bytes,
            "saved_by_deduplication_bytes": self.statistics.saved_by_deduplication_bytes,
        }
        store.put(PATH, json.dumps(dataclasses.asdict(self) | saved, indent=1).encode())
        failpoint(Failpoint.SUMMARY_WRITTEN)

    def lines(self) -> list[str]:
        """Return the lines of a table for people, without invisible characters."""
        s = self.statistics
        state = "finished" if self.finished else "stopped: too many strings were rejected"
        if self.finished and self.exit_code:
            state = "finished, with more rejects than --max-rejects allows"
        lines = [
            f"{self.layer}  {state}",
            f"  units    {self.units} ({self.units_done_now} in this run, {elapsed(self.elapsed_s)})",
            f"  strings  {number(s.strings)} of all samples, {number(s.distinct)} distinct, with the empty one; "
            f"{number(self.embedded_now)} embedded in this run",
            f"  size     {number(s.tokens, 'token')}, {byte_size(s.embedding_bytes)} of embeddings, "
            f"{byte_size(self.size_bytes)} of shards",
            f"  saved    {byte_size(s.saved_by_trimming_bytes)} by trimming, "
            f"{byte_size(s.saved_by_deduplication_bytes)} by de-duplication",
        ]
        if s.truncated:
            share = percent(s.truncated / max(1, s.distinct))
            lines.append(f"  cut      {number(s.truncated, 'string')} ({share}) longer than the encoder takes")
        lines += [f"  e.g.     {text}"[:MAX_LINE_CHARACTERS] for text in s.truncated_examples[:2]]
        lines += [f"  captions {count:>8,}  {name}" for name, count in s.captions.items()]
        lines += [f"  lengths  {count:>8,}  up to {number(length, 'token')}" for length, count in s.lengths.items()]
        lines += [f"  rejects  {count:>8,}  {name}: {string_advice(name)}" for name, count in s.rejects.items()]
        lines += [f"  e.g.     {example}"[:MAX_LINE_CHARACTERS] for example in s.reject_examples]
        lines += [f"  note     {note}" for note in self.notes]
        return [visible(line) for line in lines]


def summarize_text(
    store: Store, *, recipe: str, encoder: str, units: int, progress: Progress, statistics: TextStatistics | None
) -> TextSummary:
    """Return the summary of a layer; ``statistics`` is None for a job that stopped because of rejects."""
    summary = TextSummary(
        layer=store.url,
        recipe=recipe,
        encoder=encoder,
        exit_code=3,
        finished=statistics is not None,
        units=units,
        units_done_now=progress.units,
        embedded_now=progress.counts.samples,
        elapsed_s=progress.elapsed_s,
    )
    if statistics is not None:
        summary.statistics = statistics
        rejects = sum(statistics.rejects.values())
        windows = rejects + statistics.distinct
        summary.exit_code = 3 if too_many_rejects(rejects, windows, progress.max_rejects, final=True) else 0
    return summary
