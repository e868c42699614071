"""The report: its numbers are those of the tensors, its pictures those of the clips, and hostile data stays text."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.report import main
from pipeline.loader import LatentDataset
from pipeline.output.index import OutputTotals
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.report.dataset_stats import BucketCount, SourceCount, find
from pipeline.report.history import read_history
from pipeline.report.latent_stats import LatentStatistics, latent_statistics
from pipeline.report.page import GALLERY, notices, read_gallery, render, shown, write_page
from pipeline.report.round_trip import decode_back, psnr_db, source_frames
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card, load_vae
from tests.support.browser import Sight, look, needs_chromium
from tests.support.clips_maker import make_clip, make_image
from tests.support.golden import TINY
from tests.support.painted import SIZE, painted, write_video

SECRET = "CaNaRy7f3a91"  # noqa: S105 (that is what it is)
SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
HOSTILE = [
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "abc\u202egpj.exe\u2066",
    "line\nbreak\u2028\x00\x1b[31m",
    "' onclick='",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_card: Card) -> Path:
    """A job's output in a folder whose name is HTML: two buckets and images, skips, rejects, and hostile texts."""
    folder = tmp_path_factory.mktemp("page") / "<b>&\"' films"
    for seed in range(4):
        make_clip(folder / "videos" / f"wide{seed}.mp4", 40, seed=seed)
    make_clip(folder / "videos" / "square.mp4", 20, size=(64, 64))
    make_clip(folder / "videos" / "tiny.mp4", 20, size=(16, 16))
    make_image(folder / "videos" / "still.png")
    (folder / "videos" / "bad.mp4").write_text("not a video")
    rows = [{"path": "videos/wide0.mp4", "caption": SCRIPT}]
    rows += [{"path": text, "caption": text} for text in (SCRIPT, "k" * 10_000, *HOSTILE)]
    rows.append({"path": f"https://me:{SECRET}@127.0.0.1/a.mp4?X-Amz-Signature={SECRET}", "caption": "x"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    buckets = (Bucket(17, 32, 56), Bucket(17, 32, 32), Bucket(1, 32, 56))
    recipe = Recipe(vae=tiny_card.sha256, buckets=buckets, micro_batch=(1,) * 3, unit_clips=4, windows="all")
    sources = (f"films={folder / 'videos'}", str(folder / "list.jsonl"))
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=sources, local=True, cpus=2, max_rejects=1.0)
    encode(recipe, run, tiny_card, say=lambda line: None)
    return folder / "out"


@pytest.fixture
def output(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def pictured(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output with a gallery, in which one video is gone."""
    folder = tmp_path_factory.mktemp("pictured")
    shutil.copytree(sound, folder / "out")
    shutil.copytree(sound.parent / "videos", folder / "videos", copy_function=shutil.copy2)
    (folder / "videos" / "square.mp4").unlink()
    source = f"films={folder / 'videos'}"
    assert main([str(folder / "out"), "--vae", str(TINY), "--source", source, "--cpus", "2", "--samples", "3"]) == 0
    return folder / "out"


def page_of(output: Path) -> str:
    write_page(Store(str(output)))
    return (output / "report.html").read_text()


def text_of(page: str) -> str:
    """What a reader sees, roughly: tags become spaces, and spaces one."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)))


def means(output: Path) -> np.ndarray:
    """Every stored latent value, float64 [C, values], read from the tensors."""
    data = LatentDataset(str(output))
    latents = [data.read(np.array([row]))[0].astype(np.float64) for row in range(len(data))]
    return np.concatenate([latent.reshape(len(latent), -1) for latent in latents], axis=1)


def test_the_job_itself_leaves_a_report_that_says_how_to_get_the_gallery(sound: Path) -> None:
    text = text_of((sound / "report.html").read_text())
    assert "finished" in text and "jobs/report.py" in text and "--vae VAE" in text


def test_the_numbers_in_the_page_are_those_of_the_tensors(output: Path) -> None:
    page, values = page_of(output), means(output)
    own, card = (json.loads(html.unescape(found)) for found in re.findall(r"<pre>(\{.*?\})</pre>", page))
    assert np.allclose(own["shift"], values.mean(axis=1), rtol=1e-5, atol=1e-9)
    assert np.allclose(own["scale"], 1 / values.std(axis=1), rtol=1e-5)
    data = LatentDataset(str(output))
    assert (card["shift"], card["scale"]) == (list(data.card.shift), list(data.card.scale))
    text = text_of(page)
    normalised = (values - np.array(card["shift"])[:, None]) * np.array(card["scale"])[:, None]
    for channel in range(len(values)):
        numbers = values[channel].mean(), values[channel].std(), normalised[channel].mean(), normalised[channel].std()
        assert f" {channel} " + " ".join(f"{number:.4f}" for number in numbers) + " " in text
    assert f"means of {len(data)} clips: {values.shape[1]:,} values per channel" in text


def test_counts_are_those_of_the_rows(output: Path) -> None:
    findings, data = find(Store(str(output))), LatentDataset(str(output))
    columns = data.columns
    assert {name: bucket.clips for name, bucket in findings.buckets.items()} == {
        "32x56x17": 10,
        "32x32x17": 1,
        "32x56x1": 1,
    }
    for name, bucket in findings.buckets.items():
        rows = [row for row in columns.to_pylist() if row["bucket"] == name]
        assert bucket.frames == sum(row["num_frames"] for row in rows)
        assert bucket.size_bytes == sum(row["nbytes"] for row in rows)
        seconds = sum(row["end_s"] - row["start_s"] for row in rows if row["fps"] is not None)
        assert bucket.seconds == pytest.approx(seconds)
        assert bucket.latent_shape == data.read(np.array([columns["bucket"].to_pylist().index(name)]))[0].shape
    assert findings.totals.size_bytes == sum(path.stat().st_size for path in (output / "shards").iterdir())
    summary = json.loads((output / "summary.json").read_text())
    assert {name: group.count for name, group in findings.skips.items()} == summary["skips"]
    assert {name: group.count for name, group in findings.rejects.items()} == summary["rejects"]
    assert findings.sources["films"].num_items == 8
    assert sum(source.clips for source in findings.sources.values()) == findings.clip_durations.sum() + 1 == 12
    assert findings.finished


def test_hostile_texts_and_secrets_stay_texts(output: Path) -> None:
    page = page_of(output)
    assert "<script" not in page and "<img" not in page and not re.search(r"<[^>]*\son\w+\s*=", page)
    assert html.escape("<script>document.title", quote=False) in page
    assert "{{ 7 * 7 }}" in text_of(page)
    assert not any(character in page for character in "\u202e\u2066\u2028\x00\x1b")
    assert SECRET not in page and "k" * 201 not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("a\u202eb", "a\\u202eb"),
        ("two\nlines\x07", "two lines\\u0007"),
        ("see https://me:pw@host/a?X-Signature=pw#pw now", "see https://host/a?... now"),
        ("why?because", "why?because"),
        ("x" * 500, "x" * 133 + " … " + "x" * 67),
        (f"https://host/a?{'s' * 500}", "https://host/a?..."),
    ],
)
def test_texts_are_shown_visibly_briefly_and_without_credentials(text: str, expected: str) -> None:
    assert shown(text) == expected


def counts(output: Path) -> dict[str, Any]:
    """What a page counts, without the examples, whose choice depends on the order of rows."""
    findings = find(Store(str(output)))
    groups = {f"{name}: {group.count}" for kinds in (findings.skips, findings.rejects) for name, group in kinds.items()}
    names = ("buckets", "sources", "codecs", "encode_paths", "units", "committed")
    found = {name: getattr(findings, name) for name in names} | {"groups": groups}
    lengths = [findings.clip_durations.tolist(), findings.item_durations.tolist()]
    # sums depend on their order in the last bits
    sums = [f"{value:.9g}" for value in findings.totals.latent_sum + findings.totals.latent_sum_of_squares]
    counted = (findings.totals.num_samples, findings.totals.latent_count, findings.totals.size_bytes)
    return found | {"lengths": lengths, "sums": sums, "counted": counted}


def test_an_unfinished_output_is_counted_from_its_unit_metadata(output: Path) -> None:
    whole = counts(output)
    shutil.rmtree(output / "index")
    without_index = counts(output)
    for name, bucket in without_index["buckets"].items():  # in the order of other rows
        assert bucket.seconds == pytest.approx(whole["buckets"][name].seconds)
        bucket.seconds = whole["buckets"][name].seconds
    assert without_index == whole
    max((output / "metadata").iterdir(), key=lambda path: path.stat().st_size).unlink()
    part = counts(output)
    assert part["committed"] == whole["committed"] - 1
    clips = sum(bucket.clips for bucket in part["buckets"].values())
    assert clips == part["counted"][0] < whole["counted"][0]
    text = text_of(page_of(output))
    assert "Not finished" in text and f"{clips} in" in text


def test_rejects_that_were_tried_again_count_once(tmp_path: Path, tiny_card: Card) -> None:
    rows = [{"path": f"videos/{number}.mp4", "caption": f"number {number}"} for number in range(6)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (0, 2, 3):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=4)
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(tmp_path / "list.jsonl"),), local=True, cpus=1)
    with painted():
        encode(recipe, dataclasses.replace(run, max_rejects=1.0), tiny_card, say=lambda line: None)
        write_video(tmp_path / "videos" / "4.mp4", 4)
        encode(recipe, dataclasses.replace(run, max_rejects=1.0, retry_rejects="all"), tiny_card, say=lambda line: None)
    indexed = counts(tmp_path / "out")
    assert indexed["groups"] == {"fetch/not_found: 2"} and indexed["counted"][0] == 4
    (tmp_path / "out" / "index" / "0001.json").unlink()  # as while the second generation is being made
    assert counts(tmp_path / "out") == indexed
    shutil.rmtree(tmp_path / "out" / "index")
    assert counts(tmp_path / "out") == indexed


def test_an_output_without_a_single_clip_has_a_report_too(
    tmp_path: Path, tiny_card: Card, recipe: Recipe, run: Run
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    encode(recipe, dataclasses.replace(run, sources=(str(tmp_path / "videos"),)), tiny_card, say=lambda line: None)
    text = text_of((Path(run.output) / "report.html").read_text())
    assert "No clips yet" in text and "No latents yet" in text and "100% of all windows were rejected" in text


def facts_of(latents: np.ndarray, clips: int = 1) -> dict[str, str]:
    """A unit's sums of latents [C, values]."""
    return {
        "num_samples": str(clips),
        "latent_count": str(latents.shape[1]),
        "latent_sum": json.dumps(latents.sum(axis=1).tolist()),
        "latent_sum_of_squares": json.dumps(np.square(latents).sum(axis=1).tolist()),
    }


def test_statistics_of_many_units_are_those_of_all_their_values() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal([[0.0], [300.0]], [[1.0], [0.01]], (2, n)) for n in generator.integers(1, 5000, 50)]
    empty = facts_of(np.zeros((2, 0)), clips=0)
    totals = OutputTotals()
    for facts in [empty, *map(facts_of, parts), empty]:
        totals.add(facts)
    statistics = latent_statistics(totals)
    together = np.concatenate(parts, axis=1)
    assert statistics is not None and statistics.values_per_channel == together.shape[1] and statistics.clips == 50
    assert np.allclose(statistics.mean, together.mean(axis=1), rtol=1e-12, atol=1e-12)
    assert np.allclose(statistics.std, together.std(axis=1), rtol=1e-6)
    nothing = OutputTotals()
    nothing.add(empty)
    assert latent_statistics(nothing) is None


@pytest.mark.parametrize(
    ("clips", "mean", "std", "odd"),
    [(100, 0.1, 1.1, []), (100, 1.5, 1.0, [1]), (100, 0.0, 0.1, [1]), (100, 0.0, 5.0, [1]), (99, 9.0, 9.0, [])],
)
def test_a_shift_or_scale_that_cannot_be_right_is_noticed(
    tiny_card: Card, output: Path, clips: int, mean: float, std: float, odd: list[int]
) -> None:
    card = dataclasses.replace(tiny_card, latent_channels=2, shift=(0.0, 10.0), scale=(1.0, 0.5))
    raw = LatentStatistics(clips=clips, values_per_channel=9, mean=(0.0, 10 + mean * 2), std=(1.0, std * 2))
    assert raw.odd_channels(card) == odd
    findings = find(Store(str(output)))
    findings.latents, findings.dataset = raw, dataclasses.replace(findings.dataset, card=card)
    assert ("Normalised latents of channel 1 are far" in " ".join(notices(findings, 100))) == bool(odd)


def test_a_vae_with_statistics_per_latent_frame_gets_raw_ones_only(tiny_card: Card, output: Path) -> None:
    frames = dataclasses.replace(tiny_card, latent_channels=1, shift=((0.0, 1.0),), scale=((1.0, 1.0),))
    raw = LatentStatistics(clips=1000, values_per_channel=9, mean=(50.0,), std=(0.0,))
    assert raw.normalised(frames) is None and raw.odd_channels(frames) == []
    assert json.loads(raw.shift_and_scale) == {"shift": [50.0], "scale": [None]}
    findings = find(Store(str(output)))
    findings.latents, findings.dataset = raw, dataclasses.replace(findings.dataset, card=frames)
    text = text_of(render(findings, [], []))
    assert (
        "differ from latent frame to latent frame" in text and "norm. mean" not in text and "0 50.0000 0.0000" in text
    )


def test_long_tables_are_cut_and_say_what_is_left(output: Path, tiny_card: Card) -> None:
    findings = find(Store(str(output)))
    for n in range(30):
        findings.buckets[f"{n}x8x8"] = BucketCount(clips=1, latent_shape=(1, 1, 1, 1))
        findings.sources[f"source {n:02d}"] = SourceCount(num_items=1, clips=1)
    statistics = {name: tuple(np.linspace(0.5, 1, 128)) for name in ("mean", "std")}
    findings.latents = LatentStatistics(clips=500, values_per_channel=9, **statistics)
    card = dataclasses.replace(tiny_card, latent_channels=128, shift=(0.0,) * 128, scale=(1.0,) * 128)
    findings.dataset = dataclasses.replace(findings.dataset, card=card)
    text = text_of(render(findings, [], []))
    assert "13 more 13" in text and "12 more 12" in text and "108 more channels" in text
    assert "No job has left a record yet" in text


def write_run(output: Path, name: str, reports: list[dict[str, Any]]) -> None:
    """The record of a job, with what a report of any version has."""
    common = {"outcome": "committed", "frames": 1, "skips": {}, "rejects": {}, "size_bytes": 1, "encode_s": 1.0}
    lines = [json.dumps(common | report) + "\n" for report in reports]
    (output / "runs" / f"{name}.jsonl").write_text("".join(lines))


def test_throughput_is_spread_over_the_time_that_units_took(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    units = [
        {"unit": "a", "samples": 60, "wall_s": 60.0, "ended_s": 1e9 + 60},
        {"unit": "b", "samples": 30, "wall_s": 30.0, "ended_s": 1e9 + 60},
        {"unit": "c", "samples": 99, "wall_s": 1.0, "ended_s": 1e9 + 60, "outcome": "lost"},
        {"unit": "d", "samples": 0, "wall_s": 0.0, "ended_s": 0.0, "outcome": "already"},
    ]
    write_run(output, "new", units)
    (job,) = read_history(Store(str(output)))
    edges, rates = job.throughput()
    assert (job.units, job.samples, job.elapsed_s, job.clips_per_s) == (3, 90, 60.0, 1.5)
    assert np.allclose(rates, np.where(edges[1:] <= 30, 1.0, 2.0)) and edges[-1] == 60
    assert "90 clips in 60 s" in text_of(page_of(output))


def test_records_in_parts_are_of_one_job(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    for part in range(3):
        ended_s = 1e9 + 100 * part
        write_run(output, f"a1b2-{part:05d}", [{"unit": f"{part}", "samples": 5, "wall_s": 50.0, "ended_s": ended_s}])
    write_run(output, "c3d4-00000", [{"unit": "4", "samples": 7, "wall_s": 1.0, "ended_s": 2e9}])
    first, second = read_history(Store(str(output)))
    assert (first.name, first.units, first.samples, first.elapsed_s) == ("a1b2", 3, 15, 250.0)
    assert (second.name, second.units) == ("c3d4", 1)


def test_where_the_time_went_adds_up_and_older_records_are_said_to_lack_it(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    old = {"unit": "a", "samples": 5, "wall_s": 10.0}
    write_run(output, "old", [old])
    text = text_of(page_of(output))
    assert "do not say where the time of units went" in text and "Nor when units ended" in text
    staged = {"ended_s": 1e9, "activities": {"encode": 6.0, "decode": 3.0, "of a later version": 0.5}}
    write_run(output, "new", [old | staged])
    text = text_of(page_of(output))
    assert "in the VAE 6 s (60%)" in text and "waiting for decoded clips 3 s (30%)" in text
    assert "of a later version 0.5 s (5.0%)" in text and "everything else 0.5 s (5.0%)" in text
    assert "Summed over 1 unit." in text and "do not say" not in text and "Nor when" not in text


def test_the_gallery_shows_what_the_vae_makes_of_the_latents(pictured: Path, sound: Path) -> None:
    pictures = {picture.id: picture for picture in read_gallery(Store(str(pictured)))}
    data = LatentDataset(str(pictured))
    ids = data.columns["id"].to_pylist()
    assert {picture.bucket for picture in pictures.values()} == {"32x56x17", "32x32x17", "32x56x1"}
    wide = [picture for picture in pictures.values() if picture.bucket == "32x56x17"]
    assert len({picture.key for picture in wide}) == len(wide) == 3, "of different videos"
    run = Run(output=str(pictured), vae=str(TINY), sources=(f"films={sound.parent / 'videos'}",), cpus=2)
    vae = load_vae(str(TINY), only="decoder")
    shown_rows = [ids.index(picture.id) for picture in pictures.values() if not picture.error]
    assert len(shown_rows) == 4
    text = text_of((pictured / "report.html").read_text())
    for row, frames in zip(shown_rows, source_frames(run, data, shown_rows), strict=True):
        picture = pictures[ids[row]]
        decoded = decode_back(vae, data, row)
        assert picture.psnr_db == pytest.approx(psnr_db(frames, decoded), abs=0.01)
        assert f"{picture.psnr_db:.1f} dB" in text
        with Image.open(io.BytesIO(base64.b64decode(picture.webp))) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=float)
        expected = np.concatenate([frames[0], decoded[0]])
        assert np.abs(pixels[:, : expected.shape[1]] - expected).mean() < 16, "source above, decoded below"


def test_a_source_that_is_gone_is_said_in_its_place(pictured: Path) -> None:
    text = text_of((pictured / "report.html").read_text())
    assert "No picture:" in text and "square.mp4 was there when it was planned and is gone now" in text


def test_a_report_without_the_vae_keeps_the_gallery(pictured: Path) -> None:
    before = page_of(pictured).count("data:image/webp")
    assert main([str(pictured)]) == 0
    assert before == (pictured / "report.html").read_text().count("data:image/webp") == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--vae", "demo"], "is not the one that made"),
        (["--vae", str(TINY), "--samples", "0"], "at least 1"),
        (["--source", "/videos"], "needs --vae"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    output: Path, arguments: list[str], expected: str, capsys: Any
) -> None:
    assert main([str(output), *arguments]) == 2
    assert expected in capsys.readouterr().out and not (output / GALLERY).exists()


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().out


OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"
PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
OUTSIDE = """[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, svg, pre')
    && part.getBoundingClientRect().right > window.innerWidth + 1).map(part => part.outerHTML.slice(0, 200))"""
NO_SCRIPTS = "[document.scripts.length, document.title.startsWith('Latents in')]"
TEXT_SIZES = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_overflow_requests_or_complaints(pictured: Path, tmp_path: Path, width: int) -> None:
    page_of(pictured)
    expressions = [WIDTHS, OPEN_ALL, WIDTHS, PICTURES, OUTSIDE, NO_SCRIPTS, TEXT_SIZES]
    picture = tmp_path / "page.png"
    sight: Sight = look(pictured / "report.html", width=width, expressions=expressions, screenshot=picture)
    assert [url for url in sight.requests if not url.startswith("data:")] == [] and sight.complaints == []
    closed, _, opened, pictures, outside, scripts, text_sizes = sight.answers
    assert closed[0] <= closed[1] == width and opened[0] <= width and outside == []
    assert pictures == [True] * 4 and scripts == [0, True]
    assert min(text_sizes) >= 9, "charts can be read"
    with Image.open(picture) as image:
        assert image.width == width and np.asarray(image.convert("L"), dtype=float).std() > 10
