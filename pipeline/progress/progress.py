"""Progress of a running job: one line for people, from unit reports and from heartbeats in between."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.encode.unit_report import Heartbeat, Heartbeats, UnitHeartbeat, UnitReport
from pipeline.output.counts import Counts
from pipeline.progress.activities import idle_advice
from pipeline.progress.formatting import byte_size, elapsed, number
from pipeline.progress.reject_limit import MIN_WINDOWS_IN_FLIGHT, failed_windows, too_many_rejects
from pipeline.progress.run_log import RunLog
from pipeline.progress.work import CLIPS, Words, work_by_unit
from pipeline.recipe import Run
from pipeline.sources.units import Unit

LOG_INTERVAL_S = 10.0
"""Time between two lines in a log."""
TERMINAL_INTERVAL_S = 1.0
"""Time after which the line on a terminal is rewritten."""
SNAPSHOT_INTERVAL_S = 5.0
"""Time between two snapshots that rates are computed from."""
MAX_SNAPSHOTS = 1000
MIN_RATE_SPAN_S, MAX_RATE_SPAN_S = 60.0, 3600.0
"""Rates cover the last half of the job, but at least and at most this much time."""
ETA_MIN_UNITS, ETA_MIN_SHARE = 3, 0.05
"""Finished units, or share of the work, that an estimate of the time left needs."""
MAX_REPORTED_UNITS = 10_000
"""Number of reported units to remember: a heartbeat sent before the report may still list such a unit as in flight."""
FIRST_ADVICE_S, ADVICE_INTERVAL_S = 180.0, 900.0
"""Time before the first advice about idle encoders, and between two of them."""
UNKNOWN_SKIPS = "in units in flight"
"""Reason under which the skips of units in flight are counted: heartbeats have only their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """State of a job at one time."""

    time_s: float
    """Monotonic time in seconds."""
    work: float = 0.0
    """Work done so far, where a unit of average size is 1."""
    counts: Counts = field(default_factory=Counts)
    encoder_s: float = 0.0
    idle_s: dict[str, float] = field(default_factory=dict)


class Progress:
    """Counts the outcomes of a job's units and reports them in one line; a context manager, with a thread of its own.

    With ``show``, the line is shown every second in place of the one before. Without it, ``say`` gets the line every ten
    seconds, for logs.
    """

    def __init__(
        self,
        run: Run,
        todo: list[Unit],
        run_log: RunLog,
        say: Callable[[str], None],
        show: Callable[[str], None] | None = None,
        words: Words = CLIPS,
    ) -> None:
        self.max_rejects = run.max_rejects
        self._words = words
        self._run_log, self._say, self._show = run_log, say, show
        self._work_by_unit = work_by_unit(todo)
        self._total_work = sum(self._work_by_unit.values())
        self._started_s = self._logged_s = time.monotonic()
        self._advised_s = self._started_s + FIRST_ADVICE_S - ADVICE_INTERVAL_S
        self.heartbeats = Heartbeats(say)
        """Source of the encoders' heartbeats; an executor connects it."""
        self._latest: list[Heartbeat] = []
        self._reported_units: dict[str, None] = {}  # a set that keeps its order
        self._confinements: set[str] = set()
        self._encoders: dict[str, tuple[float, dict[str, float]]] = {}  # encoder_s and idle_s by encoder
        self._snapshots: deque[Snapshot] = deque(maxlen=MAX_SNAPSHOTS)
        self._work = 0.0
        self._is_stopped, self._waited_s = False, dict[str, float]()  # seconds by encoder
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._report_periodically, name="progress", daemon=True)
        self.units = 0
        """Number of units that have ended."""
        self.counts = Counts()
        """Outcomes of their windows."""

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._finished.set()
        self._thread.join()
        if self.units and self.units < len(self._work_by_unit):
            self._say(self.line())
        self._run_log.write()

    def poll(self) -> None:
        """Read the encoders' newest heartbeats."""
        latest = self.heartbeats.latest()
        with self._lock:
            self._latest = latest
            for heartbeat in latest:
                self._waited_s[heartbeat["encoder"]] = heartbeat["waited_s"]
                self._update_encoder(heartbeat["encoder"], heartbeat["encoder_s"], heartbeat["idle_s"])
        for heartbeat in latest:
            self._say_confinement(heartbeat["encoder"], heartbeat["confinement"])
        counts = self.counts_so_far()
        enough = counts.windows >= MIN_WINDOWS_IN_FLIGHT
        if enough and too_many_rejects(failed_windows(counts), counts.windows, self.max_rejects):
            self._is_stopped = True
            self.heartbeats.stop()

    def add(self, report: UnitReport) -> None:
        """Count a unit that has ended, or that was stopped."""
        self._run_log.add(report)
        with self._lock:
            self.counts += report.counts
            if report.outcome != "stopped":
                self.units += 1
                self._work += self._work_by_unit[report.unit]
            self._reported_units[report.unit] = None
            if len(self._reported_units) > MAX_REPORTED_UNITS:
                self._reported_units.pop(next(iter(self._reported_units)))
            self._waited_s[report.encoder] = report.waited_s
            self._update_encoder(report.encoder, report.encoder_s, report.idle_s)
        self._say_confinement(report.encoder, report.confinement)
        if self.units == len(self._work_by_unit):
            self._finished.set()  # encoders without work are not idle from now on
        if self._finished.is_set() or (self.units == 1 and not self._show):
            self._say(self.line())
            self._logged_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job began to encode."""
        return max(time.monotonic() - self._started_s, 1e-3)

    def too_many_rejects(self) -> bool:
        """Return True if the share of rejected windows is so large that the job should stop."""
        return self._is_stopped or too_many_rejects(failed_windows(self.counts), self.counts.windows, self.max_rejects)

    def counts_so_far(self) -> Counts:
        """Return the outcomes of windows in units that have ended, and in units in flight as of their last heartbeats."""
        with self._lock:
            return self._counts_so_far()

    def waited_s(self) -> float:
        """Return the seconds that encoders have waited before they made failed requests again."""
        with self._lock:
            return sum(self._waited_s.values())

    def idle_time(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since each encoder was ready, summed over encoders, and the idle seconds by cause."""
        with self._lock:
            return self._idle_time()

    def line(self) -> str:
        """Return the progress line: units, clips, rejects, bytes, idle time of the encoders, time left."""
        words = self._words
        before, now = self._recent_snapshots()
        span_s = max(now.time_s - before.time_s, 1e-3)
        with self._lock:
            counts = self._counts_so_far()
            rejects, common = counts.rejects.total(), counts.rejects.most_common(2)
            waits = [text for heartbeat in self._latest for text in heartbeat["waits"]]
        reasons = ", ".join(f"{name} {count}" for name, count in common)
        parts = [
            f"{self.units}/{len(self._work_by_unit)} units",
            f"{number(now.counts.samples, words.sample)} "
            f"({max(0, now.counts.samples - before.counts.samples) / span_s:.1f}/s, "
            f"{max(0, now.counts.frames - before.counts.frames) / span_s:.0f} {words.parts}/s)",
            f"{number(rejects, 'reject')}{reasons and f' ({reasons})'}",
            byte_size(now.counts.size_bytes),
            f"captions {now.counts.captions} of {now.counts.samples}" if words.captions and now.counts.samples else "",
            _idle_text(before, now),
            waits[0] if waits else "",
            self._time_left(before, now),
        ]
        return "  ".join(part for part in parts if part)

    def _report_periodically(self) -> None:
        while not self._finished.wait(TERMINAL_INTERVAL_S if self._show else LOG_INTERVAL_S / 10):
            self.poll()
            now_s = time.monotonic()
            if self._show:
                self._show(self.line())
            elif now_s - self._logged_s >= LOG_INTERVAL_S and self._encoders:
                self._logged_s = now_s
                self._say(self.line())
            if now_s - self._advised_s >= ADVICE_INTERVAL_S and (advice := self._advice()):
                self._advised_s = now_s
                self._say(advice)

    def _update_encoder(self, encoder: str, encoder_s: float, idle_s: dict[str, float]) -> None:
        if not self._snapshots:  # rates begin when the first encoder is ready
            self._snapshots.append(Snapshot(time_s=time.monotonic() - encoder_s))
        if encoder_s > self._encoders.get(encoder, (0.0, {}))[0]:
            self._encoders[encoder] = encoder_s, idle_s

    def _say_confinement(self, encoder: str, confinement: str) -> None:
        """Say what confines decoders, once for all machines where it is the same."""
        with self._lock:
            if not confinement or confinement in self._confinements:
                return
            self._confinements.add(confinement)
        node = encoder.rpartition("-")[0]
        self._say(confinement if node == "local" else f"node {node}: {confinement}")

    def _idle_time(self) -> tuple[float, dict[str, float]]:
        idle_s: defaultdict[str, float] = defaultdict(float)
        for _, causes in self._encoders.values():
            for cause, seconds in causes.items():
                idle_s[cause] += seconds
        return sum(total_s for total_s, _ in self._encoders.values()), dict(idle_s)

    def _recent_snapshots(self) -> tuple[Snapshot, Snapshot]:
        """Return the snapshots at the beginning and the end of the span that rates are computed over."""
        with self._lock:
            counts = self._counts_so_far()
            work = self._work + sum(self._work_in_flight(name, unit) for name, unit in self._units_in_flight())
            encoder_s, idle_s = self._idle_time()
            now = Snapshot(
                time_s=time.monotonic(),
                work=work,
                counts=counts,
                encoder_s=encoder_s,
                idle_s=idle_s,
            )
            if not self._snapshots:
                return now, now
            span_s = min(max(MIN_RATE_SPAN_S, (now.time_s - self._snapshots[0].time_s) / 2), MAX_RATE_SPAN_S)
            before = next((s for s in self._snapshots if now.time_s - s.time_s <= span_s), self._snapshots[-1])
            if now.time_s - self._snapshots[-1].time_s >= SNAPSHOT_INTERVAL_S:
                self._snapshots.append(now)
            return before, now

    def _counts_so_far(self) -> Counts:
        counts = self.counts
        for _, unit in self._units_in_flight():
            known = {name: unit[name] for name in ("samples", "captions", "frames")}
            skips = unit["windows"] - unit["samples"] - sum(unit["rejects"].values())
            counts += Counts(**known, rejects=Counter(unit["rejects"]), skips=Counter({UNKNOWN_SKIPS: max(0, skips)}))
        return counts

    def _units_in_flight(self) -> Iterator[tuple[str, UnitHeartbeat]]:
        """Yield the units in flight by name. A heartbeat may be older than the last report of its encoder."""
        for heartbeat in self._latest:
            for name, unit in heartbeat["units"].items():
                if name not in self._reported_units and name in self._work_by_unit:
                    yield name, unit

    def _work_in_flight(self, name: str, unit: UnitHeartbeat) -> float:
        """Return the work done on a unit in flight: by its items, or by its windows if its format does not count items."""
        work = self._work_by_unit[name]
        if unit["share"] is not None:
            return work * unit["share"]
        windows = self.counts.windows
        return min(work, unit["windows"] * self._work / windows) if windows else 0.0

    def _time_left(self, before: Snapshot, now: Snapshot) -> str:
        if self.units >= len(self._work_by_unit):
            return f"in {elapsed(self.elapsed_s)}"
        rate = (now.work - before.work) / max(now.time_s - before.time_s, 1e-3)
        if rate <= 0 or (self.units < ETA_MIN_UNITS and now.work < ETA_MIN_SHARE * self._total_work):
            return "time left not known yet"
        return f"about {elapsed((self._total_work - now.work) / rate)} left"

    def _advice(self) -> str:
        return idle_advice(*_idle_between(*self._recent_snapshots()))


def _idle_between(before: Snapshot, now: Snapshot) -> tuple[float, dict[str, float]]:
    """Return the encoder time and the idle seconds by cause between two snapshots."""
    idle_s = {cause: max(0.0, seconds - before.idle_s.get(cause, 0.0)) for cause, seconds in now.idle_s.items()}
    return now.encoder_s - before.encoder_s, idle_s


def _idle_text(before: Snapshot, now: Snapshot) -> str:
    """Format the share of idle time with its three largest causes; empty before the first second of encoder time."""
    encoder_s, idle_s = _idle_between(before, now)
    if encoder_s < 1:
        return ""
    causes = sorted(((seconds / encoder_s, cause) for cause, seconds in idle_s.items()), reverse=True)
    largest = ", ".join(f"{cause} {share:.0%}" for share, cause in causes[:3] if share >= 0.01)
    return f"encoders waited {sum(share for share, _ in causes):.0%}{largest and f' ({largest})'}"
