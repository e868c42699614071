"""Metrics of a real job on a real Ray head, scraped as Prometheus does, and the dashboard that shows them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from pipeline.executor.metrics import COUNTERS, GAUGES, HISTOGRAMS
from tests.support.oracle import assert_sound
from tests.support.painted import VARIABLE, command, write_video
from tests.support.paths import ROOT
from tests.support.ray_head import free_port, ray_head

DASHBOARD = json.loads((ROOT / "jobs" / "grafana.json").read_text())
NUM_VIDEOS = 16
DEEDS = dict.fromkeys(range(NUM_VIDEOS), "slow") | {3: "nan", "slow_s": 0.2}
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Value by metric, then by tags."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of a Ray head and of its metrics."""
    port = free_port()
    # Ray's workers inherit the environment of the head
    environment = {VARIABLE: json.dumps(DEEDS), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    options = ("--num-cpus=2", f"--metrics-export-port={port}")
    with ray_head(tmp_path_factory.mktemp("head"), *options, **environment) as head:
        yield head.address, f"http://127.0.0.1:{port}/metrics"


def scrape(url: str) -> Samples:
    """The job's metrics, from Prometheus' text format."""
    found: Samples = defaultdict(dict)
    try:
        text = urlopen(url, timeout=10).read().decode()  # noqa: S310
    except (URLError, OSError):
        return found
    for name, tags, value in re.findall(r"^(ray_latentmill_\w+)\{(.*)\} (\S+)$", text, flags=re.M):
        found[name][tuple(sorted(re.findall(r'(\w+)="([^"]*)"', tags)))] = float(value)
    return found


def by_tag(samples: dict[tuple[tuple[str, str], ...], float], tag: str) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for tags, value in samples.items():
        sums[dict(tags)[tag]] += value
    return dict(sums)


@pytest.fixture(scope="module")
def finished(head: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Samples]:
    """The output of a finished job, what it printed, and its last metrics."""
    folder = tmp_path_factory.mktemp("job")
    for number in range(NUM_VIDEOS):
        write_video(folder / "videos" / f"{number:02d}.mp4", number)
    write_video(folder / "videos" / "short.mp4", 1, num_frames=5)
    for name in ("bad", "worse"):
        (folder / "videos" / f"{name}.mp4").write_text("not a video")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    options = ["--cpus", "1", "--actors", "2", "--unit-clips", "3", "--max-rejects", "1", "--ray-address", head[0]]
    job = subprocess.Popen(
        command(folder / "videos", folder / "out", *options, "--windows", "all"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = job.communicate(timeout=240)
    finally:
        job.kill()
    assert job.returncode == 0, said[-5000:]
    assert_sound(folder / "out")
    summary = json.loads((folder / "out" / "summary.json").read_text())
    deadline_s = time.monotonic() + 30
    samples = scrape(head[1])
    while sum(samples["ray_latentmill_clips_total"].values()) < summary["samples"] and time.monotonic() < deadline_s:
        time.sleep(0.5)
        samples = scrape(head[1])
    return folder / "out", said, samples


def test_what_prometheus_scrapes_is_what_the_summary_says(finished: tuple[Path, str, Samples]) -> None:
    output, _, samples = finished
    summary = json.loads((output / "summary.json").read_text())
    reports = [json.loads(line) for path in (output / "runs").iterdir() for line in path.read_text().splitlines()]

    def total(name: str) -> float:
        return sum(samples[f"ray_latentmill_{name}_total"].values())

    assert summary["samples"] > NUM_VIDEOS and summary["skips"] and len(summary["rejects"]) == 2
    assert (total("clips"), total("frames")) == (summary["samples"], summary["frames"])
    assert by_tag(samples["ray_latentmill_skips_total"], "reason") == summary["skips"]
    rejects = samples["ray_latentmill_rejects_total"]
    reasons: Counter[str] = Counter()
    for tags, count in rejects.items():
        reasons[f"{dict(tags)['stage']}/{dict(tags)['reason']}"] += int(count)
    assert reasons == summary["rejects"]
    assert total("committed_bytes") == summary["size_bytes"]
    assert by_tag(samples["ray_latentmill_units_total"], "outcome") == {"committed": summary["units"]}
    encode_s = by_tag(samples["ray_latentmill_activity_seconds_total"], "activity")["encode"]
    assert encode_s == pytest.approx(sum(report["encode_s"] for report in reports), rel=1e-3)
    assert total("idle_seconds") <= total("encoder_seconds")
    assert total("encoder_seconds") - total("idle_seconds") == pytest.approx(encode_s, rel=0.01), "one VAE each"
    assert sum(samples["ray_latentmill_unit_seconds_count"].values()) == summary["units"]
    assert (
        len({report["encoder"] for report in reports})
        == len(by_tag(samples["ray_latentmill_units_total"], "encoder"))
        == 2
    )
    jobs = {dict(tags)["job"] for metric in samples.values() for tags in metric}
    assert jobs == {path.name.split("-")[0] for path in (output / "runs").iterdir()}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_asks_only_for_what_is_exported(finished: tuple[Path, str, Samples]) -> None:
    _, _, samples = finished
    asked = {name for text in expressions() for name in re.findall(r"\bray_latentmill_\w+", text)}
    assert asked <= set(samples), asked - set(samples)
    for name in [*COUNTERS, *GAUGES, *HISTOGRAMS]:
        assert any(f"ray_latentmill_{name}" in metric for metric in asked), f"no panel shows {name}"
    tags = {tag for metric in samples.values() for tags in metric for tag, _ in tags} | {"le"}
    for text in expressions():
        for labels in re.findall(r"\bby \(([^)]*)\)", text):
            assert {label.strip() for label in labels.split(",")} <= tags, text
        for label in re.findall(r"[{,]\s*(\w+)=~?\"", text):
            assert label in tags, text


def test_the_page_for_users_names_what_is_exported(finished: tuple[Path, str, Samples]) -> None:
    _, _, samples = finished
    named = set(re.findall(r"ray_latentmill_\w+", (ROOT / "jobs" / "guides" / "monitoring.md").read_text()))
    assert named <= {*samples, "ray_latentmill_unit_seconds"} and len(named) == 11


def test_the_dashboard_has_the_shape_that_grafana_reads() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["title"] and DASHBOARD["uid"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not taken & cells, panel["title"]
        taken |= cells
        assert panel["title"] and panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) >= 1
        assert all(text.count("(") == text.count(")") for text in (target["expr"] for target in panel["targets"]))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables | {"__rate_interval"}
