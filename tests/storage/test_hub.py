"""The Hugging Face Hub is asked about once per file, is waited for, and a file that changed is noticed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from pipeline.errors import ConfigError, SourceChanged, StoreError
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.retrying_file import file_facts, open_retrying
from pipeline.storage.drivers import hub as hub_module
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.urls import open_filesystem
from stvae import read_card
from tests.sources.test_sources import content_of, planned, read_items, write_tar
from tests.support.golden import TINY
from tests.support.made_up_hub import Answer, Hub, made_up_hub

REPO = "datasets/acme/videos"
URL = f"hf://{REPO}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with made_up_hub() as found:
        # huggingface_hub reads HF_ENDPOINT when it is imported
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        found.repos[REPO] = {}
        yield found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before further tries, which are not waited for."""
    found: list[float] = []
    monkeypatch.setattr(WAITS, "sleep", found.append)
    return found


def fill(hub: Hub, count: int) -> None:
    hub.repos[REPO] = {f"clips/{n:04d}.mp4": b"video %04d" % n for n in range(count)}


@pytest.mark.parametrize("count", [20, 60])
def test_a_folder_takes_one_request_per_file_and_a_few_more(
    hub: Hub, tmp_path: Path, recipe: Recipe, count: int
) -> None:
    fill(hub, count)
    contents = [content_of(item, recipe) for item in read_items(tmp_path, recipe, f"{URL}/clips")]
    assert contents == [b"video %04d" % n for n in range(count)]
    assert hub.counts["resolve"] == count
    units = count // recipe.unit_clips
    assert hub.requests - count <= 12 + units, hub.counts


def test_all_pages_of_a_listing_are_read(hub: Hub) -> None:
    fill(hub, 7)
    hub.page_entries = 2
    (source,) = find_sources([URL])
    assert [file.path for file in source.files] == sorted(hub.repos[REPO])


def test_files_of_a_folder_with_many_entries_are_looked_up_one_by_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.storage.drivers import hub as driver

    monkeypatch.setattr(driver, "PAGE_ENTRIES", 3)
    hub.page_entries = 3
    fill(hub, 9)
    sizes = [file_facts(f"{URL}/clips/{n:04d}.mp4").size for n in range(9)]
    assert sizes == [10] * 9 and hub.counts["paths-info"] == 9 and hub.counts["tree"] == 2
    with pytest.raises(FileNotFoundError):
        file_facts(f"{URL}/clips/none.mp4")


def test_a_tar_and_a_file_that_changed_with_their_size_kept_are_noticed(
    hub: Hub, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "SECONDS_PER_PAGE", 0.0)  # the listing of a folder is new for 30 ms otherwise
    tar = write_tar(tmp_path / "a.tar", [("x.mp4", b"one")]).read_bytes()
    fill(hub, 3)
    hub.repos[REPO]["a.tar"] = tar
    sources, plan = planned(tmp_path, recipe, f"{URL}/a.tar", f"{URL}/clips")
    hub.repos[REPO]["a.tar"] = tar.replace(b"one", b"two")
    hub.repos[REPO]["clips/0001.mp4"] = b"other 0001"
    from pipeline.sources.formats import items

    for source in sources:
        (unit,) = [unit for unit in plan.units if unit.source == source.name]
        with pytest.raises(SourceChanged, match="was planned"):
            for item in items(unit, source.url, recipe, plan.columns[0]):
                content_of(item, recipe)


def test_ranges_are_read_without_more_around_them(hub: Hub) -> None:
    fill(hub, 1)
    fs, path = open_filesystem(f"{URL}/clips/0000.mp4")
    assert fs.cat_file(path, start=6, end=10) == b"0000" and fs.cat_file(path, start=-2) == b"00"
    assert fs.cat_ranges([path] * 2, [0, 2], [2, 4]) == [b"vi", b"de"]
    with open_retrying(f"{URL}/clips/0000.mp4", 10) as file:
        assert file.read() == b"video 0000"


def limited(reset_s: int) -> Answer:
    return Answer.error(429, "You have hit the limit", Retry_After=str(reset_s))


def test_a_rate_limit_of_the_hub_is_waited_for_as_long_as_it_says(hub: Hub, pauses: list[float]) -> None:
    fill(hub, 1)
    answers = [limited(70), limited(40)]
    hub.fault = lambda route, path: answers.pop() if answers and route == "info" else None
    assert file_facts(f"{URL}/clips/0000.mp4").size == 10
    assert [int(pause) for pause in pauses] == [40, 70]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer.error(503, "Service is down for a moment"), "503 Service is down for a moment"),
        (Answer.error(401, "Invalid credentials in Authorization header"), "401 Invalid credentials"),
        (Answer.error(403, "Forbidden: needs a token with read rights"), "403 .*needs a token"),
        (Answer.error(429, "We had to rate limit you"), "429 .*rate limit"),
    ],
)
def test_the_hubs_own_words_and_status_end_the_job(
    hub: Hub, pauses: list[float], capfd: pytest.CaptureFixture[str], answer: Answer, message: str
) -> None:
    fill(hub, 1)
    hub.fault = lambda route, path: answer if route == "info" else None
    with pytest.raises(StoreError, match=message) as failure:
        find_sources([f"{URL}/clips"])
    assert str(failure.value).startswith(f"{URL}/") and "\n" not in str(failure.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "source", ["hf://datasets/acme/none/a.tar", f"{URL}/none.tar", f"{URL}@none/clips", URL + "/no"]
)
def test_what_is_not_there_is_a_sentence(hub: Hub, source: str) -> None:
    fill(hub, 1)
    with pytest.raises(ConfigError, match="there is no file") as failure:
        find_sources([source])
    assert source in str(failure.value)


def test_a_missing_repository_may_be_there_the_next_time(hub: Hub) -> None:
    fill(hub, 1)
    files = hub.repos.pop(REPO)
    with pytest.raises(ConfigError):
        find_sources([f"{URL}/clips"])
    hub.repos[REPO] = files
    assert len(find_sources([f"{URL}/clips"])[0].files) == 1


def test_each_process_has_a_client_of_its_own(hub: Hub) -> None:
    first, _ = open_filesystem(URL)
    assert open_filesystem(f"{URL}/x")[0] is first
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.write(writer, b"1" if open_filesystem(URL)[0] is first else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1) == b"0"


def test_a_checkpoint_that_changed_on_the_hub_is_read_anew(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files: dict[str, Any] = {path.name: path.read_bytes() for path in TINY.iterdir()}
    hub.repos["acme/vae"] = files
    first = read_card("hf://acme/vae").sha256
    assert first == read_card(str(TINY)).sha256
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    files["model.safetensors"] = bytes(weights)
    assert read_card("hf://acme/vae").sha256 != first


def test_manifest_rows_on_the_hub_take_one_request_each(hub: Hub, tmp_path: Path, recipe: Recipe) -> None:
    fill(hub, 30)
    (tmp_path / "m.csv").write_text("url\n" + "".join(f"{URL}/{path}\n" for path in sorted(hub.repos[REPO])))
    wide = dataclasses.replace(recipe, unit_clips=100)
    assert len([content_of(item, wide) for item in read_items(tmp_path, wide, f"{tmp_path}/m.csv")]) == 30
    assert hub.counts["resolve"] == 30 and hub.requests <= 34, hub.counts
