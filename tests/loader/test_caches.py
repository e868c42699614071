"""Cache folders that are read-only, another user's, full, damaged, or left half-made by a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.storage.local.files import scratch_name
from tests.support.http_server import Reply, serving
from tests.support.latent_set import write_latents
from tests.support.other_user import as_nobody, in_readable_environment
from tests.support.paths import ROOT

NUMBER = 16


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "out", [Bucket(1, 32, 32)] * NUMBER)


@pytest.fixture
def url(output: Path) -> Iterator[str]:
    def answer(path: str) -> Reply:
        file = output / path.lstrip("/")
        return Reply(file.read_bytes()) if file.is_file() else Reply(status=404)

    with serving(answer) as server:
        yield server.url


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def messages_of_an_epoch(url: str, cache: Path) -> list[str]:
    """Read an epoch with a cache, which must give every sample; what the warnings say."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        batches = LatentDataset(url, cache=cache, cache_bytes=1 << 30).batches(4)
        assert len({name for batch in batches for name in batch["id"]}) == NUMBER
    return [str(warning.message) for warning in given]


READ_AN_EPOCH = """
import json, sys, warnings
from pathlib import Path
from pipeline.loader import LatentDataset
url, *caches = sys.argv[1:]
for cache in caches:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        batches = LatentDataset(url, cache=Path(cache), cache_bytes=1 << 30).batches(4)
        num_samples = len({name for batch in batches for name in batch["id"]})
    print(json.dumps([num_samples, [str(warning.message) for warning in given]]))
"""


def test_a_cache_of_another_user_is_used_if_it_can_be_read(url: str, tmp_path: Path) -> None:
    """A user without rights takes what root has left in a cache, and does without where root's folder refuses that."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        filled, empty, closed = folder / "filled", folder / "empty", folder / "closed"
        assert messages_of_an_epoch(url, filled) == []
        empty.mkdir(0o755)
        assert messages_of_an_epoch(url, closed) == []
        closed.chmod(0o700)
        command = as_nobody([sys.executable, "-c", READ_AN_EPOCH, url, *map(str, (filled, empty, closed))])
        done = subprocess.run(
            in_readable_environment(command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
        )
    if "unshare failed" in done.stderr:
        pytest.skip("this root may not mount, and its environment lies in a folder that only root can read")
    assert done.returncode == 0, done.stderr
    of_filled, of_empty, of_closed = map(json.loads, done.stdout.splitlines())
    assert of_filled == [NUMBER, []]
    for cache, (num_samples, messages) in ((empty, of_empty), (closed, of_closed)):
        assert num_samples == NUMBER and messages, cache
        assert all(f"the cache {cache}" in text and "(Permission denied)" in text for text in messages), messages


def test_a_full_disk_and_one_without_room_for_all_are_warnings(url: str, mounted: Path) -> None:
    (mounted / "filler").write_bytes(b"x" * (60 << 10))
    (message,) = messages_of_an_epoch(url, mounted)
    assert f"the cache {mounted} cannot be used" in message and "No space left on device" in message
    assert not list(mounted.rglob("*.partial"))


def test_a_read_only_cache_is_used_as_far_as_it_goes(url: str, mounted: Path) -> None:
    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(mounted)], check=True)

    remount("ro")
    message, *_ = messages_of_an_epoch(url, mounted)
    assert f"the cache {mounted} cannot be used (Read-only file system); this process holds the whole index" in message
    remount("rw,size=100m")
    assert messages_of_an_epoch(url, mounted) == []
    remount("ro")
    assert messages_of_an_epoch(url, mounted) == []  # what is there is used, and needs no lock
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert len(list(LatentDataset(url, cache=mounted).batches(4, seed=7))) == 4
    (warning,) = given
    assert "this process makes its schedules for itself" in str(warning.message)


@pytest.mark.parametrize("name", ["catalog.json", "00000.arrow"])
def test_a_damaged_cache_is_a_warning(url: str, tmp_path: Path, name: str) -> None:
    assert messages_of_an_epoch(url, tmp_path) == []
    (path,) = tmp_path.glob(f"*/{name}")
    path.write_bytes(b"")  # as after a power cut
    (message,) = messages_of_an_epoch(url, tmp_path)
    assert f"the cache {tmp_path} cannot be used" in message


def test_a_file_where_the_cache_should_be_is_a_warning(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be used" in messages_of_an_epoch(url, tmp_path / "file")[0]


def test_what_killed_processes_left_half_made_is_swept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = scratch_name("0badcafe").replace(f"-{os.getpid()}-", "-999999999-")
    left = [tmp_path / f"{dead}.entry.partial", tmp_path / "ranges" / f"{dead}.range.partial"]
    left += [tmp_path / "entry.0badcafe.partial"]  # of an earlier program
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").touch()
    os.utime(left[2], (0, 0))
    ours = tmp_path / f"{scratch_name('0badcafe')}.other.partial"
    ours.mkdir()
    assert messages_of_an_epoch(url, tmp_path) == []
    assert not any(folder.exists() for folder in left) and ours.exists()
