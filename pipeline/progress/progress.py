"""What people see while a job runs: one line, from what encoders report and what they say in between."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.encode.unit_report import Heartbeat, Heartbeats, UnitHeartbeat, UnitReport
from pipeline.output.counts import Counts
from pipeline.progress.advice import waiting_advice
from pipeline.progress.formatting import byte_size, elapsed
from pipeline.progress.run_log import RunLog
from pipeline.recipe import Run
from pipeline.sources.formats import format_of
from pipeline.sources.units import Unit

LINE_EVERY_S = 10.0
"""In logs; on a terminal the line is rewritten every second."""
MOMENT_EVERY_S = 5.0
UNITS_TO_JUDGE, SHARE_TO_JUDGE = 3, 0.05
"""Units done, or share of the work, before the time left is told."""
UNITS_REMEMBERED = 10_000
"""As reported, for when an encoder has last been heard of before it did."""
ADVISE_AFTER_S, ADVISE_EVERY_S = 180.0, 900.0
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 60.0, 3600.0
"""Rates are of the last half of the job, within these."""
REJECTS_JUDGED_AFTER = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where a job was at a time."""

    at_s: float
    work: float = 0.0
    """In units of average size."""
    counts: Counts = field(default_factory=Counts)
    encoder_s: float = 0.0
    idle_s: dict[str, float] = field(default_factory=dict)


class Progress:
    """Counts what the units of this job report, and says so. While it is entered, a thread says so now and then too.

    ``show`` gets a line every second that replaces the one before; without it ``say`` gets one every ten seconds.
    """

    def __init__(
        self,
        run: Run,
        todo: list[Unit],
        records: RunLog,
        say: Callable[[str], None],
        show: Callable[[str], None] | None = None,
    ) -> None:
        self._max_rejects = run.max_rejects
        self._records, self._say, self._show = records, say, show
        self._work_of = work_of_units(todo)
        self._total_work = sum(self._work_of.values())
        self._started_s = self._said_s = time.monotonic()
        self._advised_s = self._started_s + ADVISE_AFTER_S - ADVISE_EVERY_S
        self.heartbeats = Heartbeats()
        """What encoders say between reports. An executor connects it."""
        self._latest: list[Heartbeat] = []
        self._just_reported: dict[str, None] = {}
        self._encoders: dict[str, tuple[float, dict[str, float]]] = {}
        self._moments: deque[Moment] = deque(maxlen=1000)
        self._work = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self.units = 0
        self.counts = Counts()

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._ticker.join()
        if self.units and self.units < len(self._work_of):
            self._say(self.line())
        self._records.write()

    def look(self) -> None:
        """See what the encoders are at."""
        latest = self.heartbeats.latest()
        with self._lock:
            self._latest = latest
            for heartbeat in latest:
                self._hear(heartbeat["encoder"], heartbeat["encoder_s"], heartbeat["idle_s"])

    def add(self, report: UnitReport) -> None:
        """One more unit is done."""
        self._records.add(report)
        with self._lock:
            self.units += 1
            self.counts += report.counts
            self._work += self._work_of[report.unit]
            self._just_reported[report.unit] = None
            if len(self._just_reported) > UNITS_REMEMBERED:
                self._just_reported.pop(next(iter(self._just_reported)))
            self._hear(report.encoder, report.encoder_s, report.idle_s)
        if self.units == len(self._work_of):
            self._over.set()  # what encoders do from now on is not waiting
        if self._over.is_set() or (self.units == 1 and not self._show):
            self._say(self.line())
            self._said_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the job began to encode."""
        return max(time.monotonic() - self._started_s, 1e-3)

    def too_many_rejects(self) -> bool:
        """Whether this job should stop rather than reject everything."""
        return too_many_rejects(self.counts.rejects.total(), self.counts.windows, self._max_rejects)

    def waiting(self) -> tuple[float, dict[str, float]]:
        """Seconds that encoders were ready in, all together, and in which their devices were idle, by cause."""
        with self._lock:
            return self._waiting()

    def line(self) -> str:
        """Units, clips, rejects, bytes, what the encoders waited for, and how much longer it may take."""
        now, then = self._window()
        took_s = max(now.at_s - then.at_s, 1e-3)
        with self._lock:
            rejects, common = self.counts.rejects.total(), self.counts.rejects.most_common(2)
        kinds = ", ".join(f"{kind} {count}" for kind, count in common)
        parts = [
            f"{self.units}/{len(self._work_of)} units",
            f"{now.counts.samples} clips ({max(0, now.counts.samples - then.counts.samples) / took_s:.1f}/s, "
            f"{max(0, now.counts.frames - then.counts.frames) / took_s:.0f} frames/s)",
            f"{rejects} rejects{kinds and f' ({kinds})'}",
            byte_size(now.counts.size_bytes),
            self._waited(now, then),
            self._left(now, then),
        ]
        return "  ".join(part for part in parts if part)

    def _tick(self) -> None:
        while not self._over.wait(1.0 if self._show else LINE_EVERY_S / 10):
            self.look()
            now_s = time.monotonic()
            if self._show:
                self._show(self.line())
            elif now_s - self._said_s >= LINE_EVERY_S and self._encoders:
                self._said_s = now_s
                self._say(self.line())
            if now_s - self._advised_s >= ADVISE_EVERY_S and (advice := self._advice()):
                self._advised_s = now_s
                self._say(advice)

    def _hear(self, encoder: str, encoder_s: float, idle_s: dict[str, float]) -> None:
        if not self._moments:
            self._moments.append(Moment(at_s=time.monotonic() - encoder_s))
        if encoder_s > self._encoders.get(encoder, (0.0, {}))[0]:
            self._encoders[encoder] = encoder_s, idle_s

    def _waiting(self) -> tuple[float, dict[str, float]]:
        idle_s: defaultdict[str, float] = defaultdict(float)
        for _, causes in self._encoders.values():
            for cause, seconds in causes.items():
                idle_s[cause] += seconds
        return sum(total_s for total_s, _ in self._encoders.values()), dict(idle_s)

    def _window(self) -> tuple[Moment, Moment]:
        """The job now, and where it was at the beginning of what counts as recent."""
        with self._lock:
            counts, work = self.counts, self._work
            for heartbeat in self._latest:
                for name, unit in heartbeat["units"].items():
                    if name not in self._just_reported and name in self._work_of:
                        counts += Counts(samples=unit["samples"], frames=unit["frames"])
                        work += self._begun_work(name, unit)
            encoder_s, idle_s = self._waiting()
            now = Moment(
                at_s=time.monotonic(),
                work=work,
                counts=counts,
                encoder_s=encoder_s,
                idle_s=idle_s,
            )
            if not self._moments:
                return now, now
            window_s = min(max(SHORTEST_WINDOW_S, (now.at_s - self._moments[0].at_s) / 2), LONGEST_WINDOW_S)
            then = next((m for m in self._moments if now.at_s - m.at_s <= window_s), self._moments[-1])
            if now.at_s - self._moments[-1].at_s >= MOMENT_EVERY_S:
                self._moments.append(now)
            return now, then

    def _begun_work(self, name: str, unit: UnitHeartbeat) -> float:
        """Work done of a unit in flight: by its items, or by its windows if its format does not count items."""
        work = self._work_of[name]
        if unit["share"] is not None:
            return work * unit["share"]
        windows = self.counts.windows
        return min(work, unit["windows"] * self._work / windows) if windows else 0.0

    def _waited(self, now: Moment, then: Moment) -> str:
        total_s, idle_s = _recent(now, then)
        if total_s < 1:
            return ""
        causes = sorted(((seconds / total_s, cause) for cause, seconds in idle_s.items()), reverse=True)
        shown = ", ".join(f"{cause} {share:.0%}" for share, cause in causes[:3] if share >= 0.01)
        return f"encoders waited {sum(share for share, _ in causes):.0%}{shown and f' ({shown})'}"

    def _left(self, now: Moment, then: Moment) -> str:
        if self.units >= len(self._work_of):
            return f"in {elapsed(self.elapsed_s)}"
        rate = (now.work - then.work) / max(now.at_s - then.at_s, 1e-3)
        if rate <= 0 or (self.units < UNITS_TO_JUDGE and now.work < SHARE_TO_JUDGE * self._total_work):
            return "time left not known yet"
        return f"about {elapsed((self._total_work - now.work) / rate)} left"

    def _advice(self) -> str:
        now, then = self._window()
        return waiting_advice(*_recent(now, then))


def work_of_units(units: list[Unit]) -> dict[str, float]:
    """Work of each unit, by name. The average of a format's units is 1, because bytes and rows cannot be compared."""
    costs: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for unit in units:
        costs[unit.format][unit.name] = format_of(unit).cost(unit)
    work: dict[str, float] = {}
    for of_format in costs.values():
        average = sum(of_format.values()) / len(of_format)
        work |= {name: cost / average if average else 1.0 for name, cost in of_format.items()}
    return work


def too_many_rejects(rejects: int, windows: int, max_rejects: float) -> bool:
    """Whether the share of rejects is above the limit; not judged before a few hundred windows."""
    return windows >= REJECTS_JUDGED_AFTER and rejects / windows > max_rejects


def _recent(now: Moment, then: Moment) -> tuple[float, dict[str, float]]:
    idle_s = {cause: max(0.0, seconds - then.idle_s.get(cause, 0.0)) for cause, seconds in now.idle_s.items()}
    return now.encoder_s - then.encoder_s, idle_s
