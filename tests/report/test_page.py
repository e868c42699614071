"""The report: its numbers are those of the tensors, and hostile data stays text."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.report import main
from pipeline.loader import LatentDataset
from pipeline.recipe import Recipe, Run
from pipeline.report import pictures
from pipeline.report.dataset_stats import BucketStats, ReasonStats, SourceStats, collect_stats
from pipeline.report.display_text import display_text
from pipeline.report.history import Job
from pipeline.report.latent_stats import LatentStatistics
from pipeline.report.page import render
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.report.pages import SECRET, page_of, text_of
from tests.support.golden import TINY


def means(output: Path) -> np.ndarray:
    """Return every stored latent value, float64 [C, values], read from the tensors."""
    data = LatentDataset(str(output))
    latents = [data.read(np.array([row]))[0].astype(np.float64) for row in range(len(data))]
    return np.concatenate([latent.reshape(len(latent), -1) for latent in latents], axis=1)


def test_the_job_itself_leaves_a_report_that_says_how_to_get_the_gallery(encoded_output: Path) -> None:
    text = text_of((encoded_output / "report.html").read_text())
    assert "finished" in text and "jobs/report.py" in text and "--vae VAE" in text


def test_the_numbers_in_the_page_are_those_of_the_tensors(output: Path) -> None:
    page, values = page_of(output), means(output)
    own, card = (json.loads(html.unescape(found)) for found in re.findall(r"<pre>(\{.*?\})</pre>", page))
    assert np.allclose(own["shift"], values.mean(axis=1), rtol=1e-5, atol=1e-9)
    assert np.allclose(own["scale"], 1 / values.std(axis=1), rtol=1e-5)
    data = LatentDataset(str(output))
    assert (card["shift"], card["scale"]) == (list(data.card.shift), list(data.card.scale))
    text = text_of(page)
    normalized = (values - np.array(card["shift"])[:, None]) * np.array(card["scale"])[:, None]
    for channel in range(len(values)):
        numbers = values[channel].mean(), values[channel].std(), normalized[channel].mean(), normalized[channel].std()
        assert f" {channel} " + " ".join(f"{number:.4f}" for number in numbers) + " " in text
    assert f"means of {len(data)} clips: {values.shape[1]:,} values per channel" in text


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
def test_texts_become_visible_and_short_and_lose_credentials(text: str, expected: str) -> None:
    assert display_text(text) == expected


def test_an_output_without_a_single_clip_has_a_report_too(
    tmp_path: Path, tiny_card: Card, recipe: Recipe, run: Run
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    encode(recipe, dataclasses.replace(run, sources=(str(tmp_path / "videos"),)), tiny_card, say=lambda line: None)
    text = text_of((Path(run.output) / "report.html").read_text())
    assert "No clips yet" in text and "No latents yet" in text and "100% of all windows were rejected" in text


def test_names_of_another_version_are_shown_without_a_traceback(output: Path) -> None:
    stats = collect_stats(Store(str(output)))
    stats.skips["boring"] = ReasonStats(count=2)
    stats.rejects["decode/cursed"] = ReasonStats(count=1, examples={"a.mp4": "a curse"})
    jobs = [Job(name="later", units=1, units_with_activities=1, activities=Counter({"teleport": 5.0}))]
    text = text_of(render(stats, jobs, []))
    assert "boring 2 another version" in text and "decode/cursed 1 another version" in text and "teleport 5 s" in text


def test_long_tables_are_cut_and_count_the_remainder(output: Path, tiny_card: Card) -> None:
    stats = collect_stats(Store(str(output)))
    for n in range(30):
        stats.buckets[f"{n}x8x8"] = BucketStats(clips=1, latent_shape=(1, 1, 1, 1))
        stats.sources[f"source {n:02d}"] = SourceStats(num_items=1, clips=1)
    statistics = {name: tuple(np.linspace(0.5, 1, 128)) for name in ("mean", "std")}
    stats.latents = LatentStatistics(clips=500, values_per_channel=9, **statistics)
    card = dataclasses.replace(tiny_card, latent_channels=128, shift=(0.0,) * 128, scale=(1.0,) * 128)
    stats.dataset = dataclasses.replace(stats.dataset, card=card)
    text = text_of(render(stats, [], []))
    assert "13 more 13" in text and "12 more 12" in text and "108 more channels" in text
    assert "No job has left a record yet" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--vae", "demo"], "is not the one that made"),
        (["--vae", str(TINY), "--samples", "0"], "at least 1"),
        (["--source", "/videos"], "needs --vae"),
    ],
)
def test_contradicting_arguments_are_refused(output: Path, arguments: list[str], expected: str, capsys: Any) -> None:
    assert main([str(output), *arguments]) == 2
    assert expected in capsys.readouterr().out and not (output / pictures.PATH).exists()


def test_a_folder_without_an_output_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().out
