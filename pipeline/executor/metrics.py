"""An encoder's numbers for Prometheus, through Ray: every node of a Ray cluster exports them."""

from __future__ import annotations

from typing import Any

from pipeline.encode.counters import EncoderCounters
from pipeline.encode.unit_report import UnitReport
from pipeline.encode.utilization import Utilization
from pipeline.errors import Reject

PREFIX = "latentmill_"
COUNTERS = {
    "units": ("Units that have ended, by outcome", ("outcome",)),
    "clips": ("Clips encoded; work that is repeated after a failure counts again", ()),
    "frames": ("Frames of these clips", ()),
    "skips": ("Windows that the recipe leaves out", ("reason",)),
    "rejects": ("Windows and items at fault", ("stage", "reason")),
    "committed_bytes": ("Bytes of committed shards", ()),
    "encoder_seconds": ("Time that the encoder has been ready", ()),
    "idle_seconds": ("Time in which no unit was in the VAE, by what the units in flight were at", ("cause",)),
    "activity_seconds": (
        "Time of units in flight by activity; two units add two seconds a second",
        ("activity",),
    ),
}
GAUGES = {"busy_share": "Share of the time since the last update in which the VAE worked, 0 to 1"}
HISTOGRAMS = {"unit_seconds": "From begin to commit of a unit"}
UNIT_SECONDS = [1, 3, 10, 30, 60, 120, 300, 600, 1200, 3600, 7200]


class Metrics:
    """One encoder's metrics, tagged with the job and the encoder; to be made where Ray runs."""

    def __init__(self, job: str, encoder: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        tags = {"job": job, "encoder": encoder}

        def made(metric_class: Any, name: str, description: str, *own: str, **options: Any) -> Any:
            metric = metric_class(PREFIX + name, description=description, tag_keys=(*tags, *own), **options)
            metric.set_default_tags(tags)
            return metric

        self._counters = {name: (made(Counter, name, text, *keys), keys) for name, (text, keys) in COUNTERS.items()}
        self._busy_share = made(Gauge, "busy_share", GAUGES["busy_share"])
        self._unit_seconds = made(Histogram, "unit_seconds", HISTOGRAMS["unit_seconds"], boundaries=UNIT_SECONDS)
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}

    def update(self, tally: EncoderCounters, occupancy: Utilization) -> None:
        """Bring the counters to what the encoder has done by now. Not from two threads at once."""
        totals = tally.totals()
        encoder_s, idle_s, activities_s = occupancy.seconds()
        for outcome, count in totals.units.items():
            self._raise("units", count, outcome)
        self._raise("clips", totals.samples)
        self._raise("frames", totals.frames)
        for reason, count in totals.skips.items():
            self._raise("skips", count, reason)
        for name, count in totals.rejects.items():
            self._raise("rejects", count, *Reject.parse_name(name))
        self._raise("committed_bytes", totals.size_bytes)
        for activity, seconds in activities_s.items():
            self._raise("activity_seconds", seconds, activity)
        spent_s = self._raise("encoder_seconds", encoder_s)
        waited_s = sum(self._raise("idle_seconds", seconds, cause) for cause, seconds in idle_s.items())
        if spent_s > 0:
            self._busy_share.set(1 - waited_s / spent_s)

    def unit_ended(self, report: UnitReport) -> None:
        """A unit's time from begin to end."""
        self._unit_seconds.observe(report.wall_s)

    def _raise(self, name: str, value: float, *tags: str) -> float:
        """By how much the counter had to grow."""
        counter, keys = self._counters[name]
        grown = value - self._seen.get((name, tags), 0.0)
        if grown > 0:
            counter.inc(grown, dict(zip(keys, tags, strict=True)))
            self._seen[name, tags] = value
        return max(0.0, grown)
