"""An encoder's metrics for Prometheus. Every node of a Ray cluster exports those of its processes."""

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
    "rejects": ("Windows and items that cannot be used", ("stage", "reason")),
    "committed_bytes": ("Bytes of committed shards", ()),
    "encoder_seconds": ("Time since the encoder became ready", ()),
    "idle_seconds": ("Time in which no unit was in the VAE, by what the units in flight were doing", ("cause",)),
    "activity_seconds": (
        "Time of units in flight by activity; two units add two seconds per second",
        ("activity",),
    ),
}
GAUGES = {"busy_share": "Share of the time since the last update in which the VAE worked, 0 to 1"}
HISTOGRAMS = {"unit_seconds": "Time from the begin of a unit to its commit"}
UNIT_SECONDS = [1, 3, 10, 30, 60, 120, 300, 600, 1200, 3600, 7200]
"""Boundaries of the histogram's buckets in seconds."""


class Metrics:
    """One encoder's metrics, tagged with the job and the encoder. Can only be made in a process that Ray runs."""

    def __init__(self, job: str, encoder: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        tags = {"job": job, "encoder": encoder}

        def metric(metric_class: Any, name: str, description: str, *keys: str, **options: Any) -> Any:
            made = metric_class(PREFIX + name, description=description, tag_keys=(*tags, *keys), **options)
            made.set_default_tags(tags)
            return made

        self._counters = {name: (metric(Counter, name, text, *keys), keys) for name, (text, keys) in COUNTERS.items()}
        self._busy_share = metric(Gauge, "busy_share", GAUGES["busy_share"])
        self._unit_seconds = metric(Histogram, "unit_seconds", HISTOGRAMS["unit_seconds"], boundaries=UNIT_SECONDS)
        self._exported: dict[tuple[str, tuple[str, ...]], float] = {}
        """Value of each counter by name and tags."""

    def update(self, counters: EncoderCounters, utilization: Utilization) -> None:
        """Raise the metrics to the encoder's current counters. Only one thread may call this at a time."""
        totals = counters.totals()
        times = utilization.times()
        for outcome, count in totals.units.items():
            self._raise_to("units", count, outcome)
        self._raise_to("clips", totals.counts.samples)
        self._raise_to("frames", totals.counts.frames)
        for reason, count in totals.counts.skips.items():
            self._raise_to("skips", count, reason)
        for name, count in totals.counts.rejects.items():
            self._raise_to("rejects", count, *Reject.parse_name(name))
        self._raise_to("committed_bytes", totals.counts.size_bytes)
        for activity, seconds in times.activities_s.items():
            self._raise_to("activity_seconds", seconds, activity)
        passed_s = self._raise_to("encoder_seconds", times.total_s)
        idle_s = sum(self._raise_to("idle_seconds", seconds, cause) for cause, seconds in times.idle_s.items())
        if passed_s > 0:
            self._busy_share.set(1 - idle_s / passed_s)

    def unit_ended(self, report: UnitReport) -> None:
        """Add a unit's time to the histogram."""
        self._unit_seconds.observe(report.wall_s)

    def _raise_to(self, name: str, value: float, *tags: str) -> float:
        """Raise a counter to ``value``. Returns the difference to its last value."""
        counter, keys = self._counters[name]
        growth = value - self._exported.get((name, tags), 0.0)
        if growth > 0:
            counter.inc(growth, dict(zip(keys, tags, strict=True)))
            self._exported[name, tags] = value
        return max(0.0, growth)
