"""A finished output is read from web servers of every kind: files are asked for by name, never by a listing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from jobs.edit_dataset import main as edit
from jobs.report import main as report
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError, StoreError
from pipeline.loader import LatentDataset
from pipeline.output.index import newest_index
from pipeline.storage.range_client import VARIABLE as RANGE_CLIENT
from pipeline.storage.store import Store
from tests.support.latent_set import latent, write_latents
from tests.support.stores.web import HABITS, web_server

BUCKETS = [Bucket(17, 32, 32), Bucket(34, 32, 56)] * 4
NUM_INDEXES = 12


@dataclass(frozen=True)
class Site:
    """A folder behind a web server. The output in ``out`` has several indexes, as after several jobs."""

    folder: Path
    address: str
    log: Path

    def url(self, habit: str, output: str = "out") -> str:
        """The URL at which the server shows an output with a habit."""
        return f"{self.address}/{habit}/{output}"

    def copy(self, name: str) -> Path:
        """Copy the output to another folder of the site."""
        shutil.copytree(self.folder / "out", self.folder / name)
        return self.folder / name

    def requests(self, habit: str) -> list[str]:
        """Paths that were requested from the server with a habit, in order."""
        paths = [json.loads(line)[1] for line in self.log.read_text().splitlines()]
        return [path.removeprefix(f"/{habit}/") for path in paths if path.startswith(f"/{habit}/")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    output = write_latents(folder / "out", BUCKETS, samples_per_shard=4)
    newest = json.loads((output / "index" / "0000.json").read_text())
    for generation in range(NUM_INDEXES):
        older = {} if generation == NUM_INDEXES - 1 else {"samples": newest["skips"], "num_samples": 0}
        values = newest | older | {"generation": generation}
        (output / "index" / f"{generation:04d}.json").write_text(json.dumps(values))
    state = tmp_path_factory.mktemp("state") / "web"
    with web_server(folder, state) as server:
        yield Site(folder, server.url, state / "requests")


@pytest.mark.parametrize("client", ["auto", "fsspec"])
@pytest.mark.parametrize("habit", sorted(HABITS.keys() - {"no-ranges"}))
def test_any_web_server_will_do(site: Site, habit: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RANGE_CLIENT, client)
    seen = set()
    for batch in LatentDataset(site.url(habit)).batches(2, normalized=False, verify=True):
        for key, x in zip(batch["key"], batch["latents"], strict=True):
            assert torch.equal(x.half(), torch.from_numpy(latent(int(key), BUCKETS[int(key)], 8)[:4]).half())
            seen.add(int(key))
    assert seen == set(range(len(BUCKETS)))
    names = [path.rpartition("/")[2] for path in site.requests(habit)]
    assert names and all("." in name for name in names), "a folder was asked for"
    # indexes 0, 1, 3, 7, 15, 11, 13 and 12, index 11 twice more, and edits 0; some clients ask twice for each
    assert len([name for name in names if name[:4].isdigit()]) <= 2 * 11


def test_the_newest_index_is_found_among_any_number(site: Site) -> None:
    output = site.copy("growing")
    newest = json.loads((output / "index" / "0000.json").read_text())
    shutil.rmtree(output / "index")
    (output / "index").mkdir()
    for generation in range(20):
        values = newest | {"generation": generation}
        (output / "index" / f"{generation:04d}.json").write_text(json.dumps(values))
        found = newest_index(Store(site.url("plain", "growing")))
        assert found is not None and found.generation == generation


@pytest.mark.parametrize("habit", ["plain", "forbidden", "fallback", "gone"])
def test_an_output_without_an_index_is_not_finished(site: Site, habit: str) -> None:
    output = site.copy(f"unfinished-{habit}")
    shutil.rmtree(output / "index")
    with pytest.raises(ConfigError, match=r"has no index/0000\.json: from a web server"):
        LatentDataset(site.url(habit, output.name))


def test_an_index_that_may_not_be_read_is_no_reason_to_read_an_older_one(site: Site) -> None:
    output = site.copy("private")
    (output / "index" / "0007.json").chmod(0)
    with pytest.raises(StoreError, match=r"index/0007\.json: 403"):
        LatentDataset(site.url("plain", "private"))


def test_a_damaged_index_is_no_reason_to_read_an_older_one(site: Site) -> None:
    output = site.copy("damaged")
    (output / "index" / "0011.json").write_text("<html>")
    with pytest.raises(IntegrityError, match=r"index/0011\.json is damaged"):
        LatentDataset(site.url("plain", "damaged"))


@pytest.mark.parametrize("habit", ["plain", "forbidden", "fallback"])
def test_edits_and_tags_are_found_without_a_listing(site: Site, habit: str) -> None:
    output, url = site.copy(f"removed-{habit}"), site.url(habit, f"removed-{habit}")
    for number in range(3):
        where = f"key == '{number}'"
        assert edit([str(output), "remove", "--where", where, "--reason", "ticket 12"]) == 0
        assert len(LatentDataset(url)) == len(BUCKETS) - number - 1
        assert edit([str(output), "tag", f"v{number}"]) == 0
    assert (
        LatentDataset(url, version="v0").columns["key"].to_pylist()
        == LatentDataset(str(output), version="v0").columns["key"].to_pylist()
    )
    assert len(LatentDataset(url, version="v0")) == len(BUCKETS) - 1
    with pytest.raises(ConfigError, match="has no tag 'v9'"):
        LatentDataset(url, version="v9")
    assert edit([url, "tag", "v9"]) == 2


def test_edits_of_a_later_version_are_found_without_a_listing(site: Site) -> None:
    output = site.copy("edited")
    (output / "edits").mkdir()
    shutil.copy(next((output / "metadata").iterdir()), output / "edits" / "0000.parquet")
    with pytest.raises(IntegrityError, match="has edits that this program does not understand"):
        LatentDataset(site.url("plain", "edited"))


@pytest.mark.parametrize("command", [verify, report])
def test_commands_that_list_an_output_refuse_web_servers(
    site: Site, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([site.url("plain")]) == 2
    assert "is on a web server, where files cannot be listed or written" in capsys.readouterr().out
