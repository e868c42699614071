"""The progress line of a running job, its run log, and the causes of idle time."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.encode.device_queue import DeviceQueue
from pipeline.encode.unit_report import Heartbeat, UnitHeartbeat, UnitReport
from pipeline.encode.utilization import NO_UNIT, Activity, Utilization
from pipeline.output.counts import Counts
from pipeline.progress import activities, progress, run_log
from pipeline.progress.activities import ACTIVITY_TEXTS, activity_label, idle_advice
from pipeline.progress.progress import Progress
from pipeline.progress.run_log import RunLog
from pipeline.progress.terminal import Terminal
from pipeline.progress.work import work_by_unit
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.units import Unit
from pipeline.storage.store import Store
from stvae import Card
from tests.support.painted import PaintingDecoders, painted, write_video


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_idle_seconds_are_shared_by_the_units_activities_and_add_up() -> None:
    clock = Clock()
    occupancy = Utilization(clock)
    clock.now_s += 1  # no unit yet
    with occupancy.unit() as a:
        clock.now_s += 2
        a.enter(Activity.DECODE)
        clock.now_s += 4
        with occupancy.unit() as b:
            clock.now_s += 8  # a decodes, b commits: shared
            with a.encoding():
                b.enter(Activity.DEVICE)
                clock.now_s += 16  # not idle
            a.enter(Activity.COMMIT)
            with b.encoding():
                a.enter(Activity.FETCH)
                clock.now_s += 32
    total_s, idle_s, stages_s = occupancy.times()
    assert total_s == 63
    assert {cause: s for cause, s in idle_s.items() if s} == {NO_UNIT: 1, "commit": 2 + 4, "decode": 4 + 4}
    assert a.seconds == {"commit": 2, "decode": 12, "encode": 16, "fetch": 32}
    assert b.seconds == {"commit": 8, "device": 16, "encode": 32}
    assert sum(a.seconds.values()) == 62 and stages_s["encode"] == 48


def test_every_activity_has_a_label_and_every_cause_of_idle_time_has_advice() -> None:
    assert {*map(str, Activity), NO_UNIT} == set(ACTIVITY_TEXTS)
    for name, text in ACTIVITY_TEXTS.items():
        assert text.label and bool(text.awaited) == bool(text.remedy) == (name != Activity.ENCODE)


def test_an_activity_of_another_version_gets_its_name_as_label_and_no_traceback() -> None:
    assert activity_label("teleport") == "teleport"
    assert idle_advice(100, {"teleport": 50.0}) == "the encoders waited 50% of the time, mostly for teleport"


def test_a_device_makes_one_call_at_a_time_and_those_of_the_oldest_unit_first() -> None:
    device = DeviceQueue()
    order: list[str] = []
    first = device.submit(1, lambda: time.sleep(0.1))
    calls = [device.submit(unit, lambda unit=unit, n=n: order.append(f"{unit}.{n}")) for n in (1, 2) for unit in (2, 1)]  # type: ignore[misc]
    broken = device.submit(3, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        broken.result(10)
    assert first.done() and all(call.done() for call in calls)
    assert order == ["1.1", "1.2", "2.1", "2.2"]
    device.close()


def units_of(*sizes: int, format: Any = "tar") -> list[Unit]:
    return [
        Unit(
            name=f"{format}{n}",
            source="s",
            format=format,
            generation=0,
            start=0,
            stop=None if format == "tar" else size,
            size=size,
        )
        for n, size in enumerate(sizes)
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def make_progress(units: list[Unit], run: Run, lines: list[str]) -> Progress:
    return Progress(run, units, RunLog(Store(run.output), "job"), lines.append)


def report(unit: Unit, encoder_s: float, **fields: Any) -> UnitReport:
    return UnitReport(unit=unit.name, outcome="committed", encoder="e", encoder_s=encoder_s, **fields)


def test_the_time_left_follows_the_work_that_is_left_not_the_count_of_units(run: Run, clock: Clock) -> None:
    units = units_of(400, 100, 100, 100, 100, 100, 100)
    job_progress = make_progress(units, run, [])
    assert "time left not known yet" in job_progress.line() and job_progress.line().startswith(
        "0/7 units  0 clips (0.0/s"
    )
    clock.now_s += 40  # the encoder was ready after ten seconds
    counts = Counts(samples=60, frames=600, size_bytes=3_000_000)
    job_progress.add(report(units[0], 30.0, counts=counts, idle_s={"decode": 6.0, "commit": 3.0}))
    assert "time left not known yet" not in job_progress.line(), "40 % of the work is done"
    line = job_progress.line()
    assert "1/7 units  60 clips (2.0/s, 20 frames/s)  0 rejects  3 MB" in line
    assert "encoders waited 30% (decode 20%, commit 10%)" in line and line.endswith("about 45 s left")


def test_units_in_flight_count_by_their_items_and_tars_by_the_windows_of_others(run: Run, clock: Clock) -> None:
    units = units_of(100, 100, format="manifest") + units_of(10, 30)
    assert work_by_unit(units) == {"manifest0": 1, "manifest1": 1, "tar0": 0.5, "tar1": 1.5}
    job_progress = make_progress(units, run, [])

    def unit(share: float | None) -> UnitHeartbeat:
        return {"samples": 5, "captions": 4, "frames": 50, "windows": 5, "rejects": {}, "share": share}

    in_flight = {"manifest1": unit(0.5), "tar1": unit(None), "stranger": unit(0.5)}
    waits: Any = {"waits": ["waiting 9 s for s3://b/x (HTTP 503 SlowDown), retry 3 of 5"], "waited_s": 9.0}
    heartbeat: Heartbeat = {
        "encoder": "e",
        "confinement": "",
        "encoder_s": 10.0,
        "idle_s": {},
        "units": in_flight,
        **waits,
    }
    job_progress.heartbeats.connect(lambda: [heartbeat], lambda: None)
    clock.now_s += 20
    job_progress.poll()
    assert "10 clips" in job_progress.line(), "two units in flight"
    assert waits["waits"][0] in job_progress.line() and job_progress.waited_s() == 9
    _, now = job_progress._recent_snapshots()
    assert now.work == 0.5, "the number of windows of a tar is not known yet"
    job_progress.add(report(units[0], 10.0, counts=Counts(samples=10)))
    _, now = job_progress._recent_snapshots()
    assert now.work == 1 + 0.5 + 0.5, "ten windows are one unit of work"
    job_progress.add(report(units[1], 10.0, counts=Counts(samples=10)))
    assert "25 clips" in job_progress.line(), "a reported unit is no longer in flight"


def test_what_confines_decoders_is_said_once_for_all_machines_where_it_is_the_same(run: Run, clock: Clock) -> None:
    lines: list[str] = []
    job_progress = make_progress(units_of(10, 10, 10), run, lines)
    same, other = "decoders are confined by Landlock 7", "decoders can read other files: they are confined by nothing"
    beats = [("node1-1", same), ("node1-2", same), ("node2-1", other)]
    heartbeats: list[Heartbeat] = [
        {
            "encoder": encoder,
            "confinement": text,
            "encoder_s": 1.0,
            "idle_s": {},
            "waits": [],
            "waited_s": 0.0,
            "units": {},
        }
        for encoder, text in beats
    ]
    job_progress.heartbeats.connect(lambda: heartbeats, lambda: None)
    job_progress.poll()
    job_progress.poll()
    job_progress.add(report(units_of(10)[0], 2.0, confinement=same))
    assert [line for line in lines if "confined" in line] == [f"node node1: {same}", f"node node2: {other}"]


def test_a_log_gets_a_line_first_and_last_and_every_ten_seconds_and_a_terminal_one_a_second(
    run: Run, tmp_path: Path, recipe: Recipe, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAINTED", json.dumps(dict.fromkeys(range(12), "slow") | {"slow_s": 0.2}))
    for name in ("LOG_INTERVAL_S", "TERMINAL_INTERVAL_S"):
        monkeypatch.setattr(progress, name, 0.4)
    log_lines: list[str] = []
    took_s: list[float] = []
    shown_lines: list[str] = []
    for number in range(12):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    for show in (None, shown_lines.append):
        run = dataclasses.replace(run, sources=(str(tmp_path / "videos"),), output=str(tmp_path / f"out{show is None}"))
        began_s = time.monotonic()
        with painted():
            encode(recipe, run, tiny_card, log_lines.append, show)
        took_s.append(time.monotonic() - began_s)
    second = next(n for n, line in enumerate(log_lines) if n and "planned" in line)
    plain, terminal = log_lines[:second], log_lines[second:]
    assert any("1/3 units" in line for line in plain) and "3/3 units" in plain[-1]
    assert 4 <= len(plain) <= 4 + took_s[0] / 0.4, "no more than one line in an interval"
    assert 4 <= len(shown_lines) <= 4 + took_s[1] / 0.4 and all(
        re.match(r"\d/3 units  \d+ clips? \(", line) for line in shown_lines
    )
    progress_lines = [line[:9] for line in terminal[1:] if not line.startswith("fetched videos may take")]
    assert progress_lines == ["3/3 units"], "only the last line stays"


def test_reports_are_kept_in_parts_as_the_job_goes(run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "REPORTS_PER_PART", 3)
    units = units_of(*[10] * 8)
    output = Path(run.output)
    with make_progress(units, run, []) as job_progress:
        for n, unit in enumerate(units[:5]):
            job_progress.add(report(unit, n + 1.0, ended_s=1e9, activities={"encode": 1.0}))
        assert [path.name for path in (output / "runs").iterdir()] == ["job-00000.jsonl"], "what a killed driver leaves"
        clock.now_s += 301
        job_progress.add(report(units[5], 7.0))
        job_progress.add(report(units[6], 8.0))
    parts = sorted((output / "runs").iterdir())
    lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
    assert [path.name for path in parts] == [f"job-{n:05d}.jsonl" for n in range(3)]
    assert [line["unit"] for line in lines] == [unit.name for unit in units[:7]]
    assert UnitReport.from_json(lines[0]).activities == {"encode": 1.0} and lines[0]["ended_s"] == 1e9


class SlowDecoders(PaintingDecoders):
    """Decoders that take longer for each video than the VAE does."""

    def clips(self, fd: int, select: Any) -> Iterator[Any]:
        time.sleep(0.5)
        yield from super().clips(fd, select)


@pytest.mark.parametrize(("slow", "word"), [("decode", "--cpus"), ("commit", "output's store"), ("fetch", "sources")])
def test_a_bottleneck_is_named_with_what_to_do(
    slow: str, word: str, run: Run, tmp_path: Path, recipe: Recipe, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities, "MIN_ENCODER_S", 0.5)
    monkeypatch.setattr(progress, "FIRST_ADVICE_S", 0.5)
    for number in range(8):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    run = dataclasses.replace(run, sources=(str(tmp_path / "videos"),), cpus=1)
    encoders = "pipeline.encode.encoder"
    with painted(), pytest.MonkeyPatch.context() as patch:  # undone before painted(), which it builds on
        if slow == "decode":
            patch.setattr(f"{encoders}.Decoders", SlowDecoders)
        elif slow == "commit":
            put_new = Store.put_new
            patch.setattr(Store, "put_new", lambda *a: time.sleep(0.5 * ("shards" in a[1])) or put_new(*a))  # type: ignore[func-returns-value]
        else:
            from pipeline.encode import shard_attempt

            fetch = shard_attempt.fetch
            patch.setattr("pipeline.encode.shard_attempt.fetch", lambda *a: time.sleep(0.5) or fetch(*a))  # type: ignore[func-returns-value]
        summary = encode(dataclasses.replace(recipe, unit_clips=2), run, tiny_card, say=lambda line: None)
    assert max(summary.idle_s, key=lambda cause: summary.idle_s[cause]) == slow
    assert sum(summary.idle_s.values()) <= summary.encoder_s
    assert "mostly for" in str(summary) and word in str(summary)
    activity_s: dict[str, float] = {}
    for path in (Path(run.output) / "runs").iterdir():
        for line in path.read_text().splitlines():
            values = json.loads(line)
            assert sum(values["activities"].values()) == pytest.approx(values["wall_s"])
            assert values["ended_s"] == pytest.approx(time.time(), abs=120)
            for name, seconds in values["activities"].items():
                activity_s[name] = activity_s.get(name, 0.0) + seconds
    assert max(activity_s, key=lambda name: activity_s[name]) == slow


def test_little_idle_time_gets_no_advice() -> None:
    assert idle_advice(1000, {"decode": 40.0, "commit": 20.0}) == ""
    assert idle_advice(20, {"decode": 15.0}) == "", "too early to tell"
    assert idle_advice(1000, {"decode": 300.0, "commit": 80.0}).startswith(
        "the encoders waited 38% of the time, mostly for decoded clips: give each encoder more --cpus"
    )


def test_a_terminals_line_is_rewritten_and_lines_that_stay_go_above_it() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    assert not terminal.rewrites
    terminal.say("a")
    terminal.show("b" * 500)
    terminal.say("c")
    assert stream.getvalue().startswith("a\n\r\x1b[Kbbb") and stream.getvalue().endswith("b\r\x1b[Kc\n")
    assert len(stream.getvalue()) < 400
