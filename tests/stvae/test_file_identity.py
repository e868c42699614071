"""Files of each store are told apart by what the store reports about them, and remote checkpoints are never stale."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.urls import FileFacts
from stvae import read_card
from stvae.file_identity import version_tag
from tests.support.golden import TINY

WEIGHTS = "model.safetensors"


def content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def time_written(content: bytes) -> datetime:
    """A time that differs between contents, as if each was written at another time."""
    return datetime.fromtimestamp(int(content_hash(content)[:8], 16), tz=UTC)


REPORTS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "s3": lambda content: {"ETag": f'"{content_hash(content)}"', "LastModified": time_written(content)},
    "azure": lambda content: {"etag": f'"0x{content_hash(content)[:15]}"', "last_modified": time_written(content)},
    "gcs": lambda content: {"md5Hash": content_hash(content), "generation": "17", "mtime": time_written(content)},
    "gcs without a hash": lambda content: {"generation": content_hash(content)[:16]},
    "hugging face": lambda content: {"blob_id": content_hash(content)[:40], "lfs": None, "xet_hash": None},
    "hugging face bucket": lambda content: {"xet_hash": content_hash(content), "mtime": 1.0},
    "large file pointers": lambda content: {"lfs": {"sha256": content_hash(content), "size": len(content)}},
    "local": lambda content: {"mtime": time_written(content).timestamp()},
    "times only": lambda content: {"last_modified": time_written(content)},
    "times only, as S3 names them": lambda content: {"LastModified": time_written(content)},
    "no versions": lambda content: {},
}
"""What each store reports about a file with this content, besides its name and size."""


class ReportingFileSystem(MemoryFileSystem):
    """A store in memory that reports what ``report`` returns, and counts its downloads."""

    protocol = "reporting"
    report: Callable[[bytes], dict[str, Any]]
    listings_report = True
    downloads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("reporting:/")))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        info: dict[str, Any] = super().info(path, **options)
        return info | type(self).report(self.store[info["name"]].getvalue()) if info["type"] == "file" else info

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        infos = super().ls(path, detail=detail, **options)
        return [self.info(info["name"]) for info in infos] if detail and self.listings_report else infos

    def get_file(self, *arguments: Any, **options: Any) -> None:
        type(self).downloads += 1
        super().get_file(*arguments, **options)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[ReportingFileSystem]:
    monkeypatch.setenv("HOME", str(tmp_path))

    class Store(ReportingFileSystem):
        store: dict[str, Any] = {}  # noqa: RUF012
        pseudo_dirs: list[str] = [""]  # noqa: RUF012

    fsspec.register_implementation("reporting", Store, clobber=True)
    fs = Store(skip_instance_cache=True)
    for path in TINY.iterdir():
        fs.pipe_file(f"/vae/{path.name}", path.read_bytes())
    return Store


def replace_weights(store: type[ReportingFileSystem]) -> None:
    """Write weights of the same size in which one bit differs."""
    fs = store(skip_instance_cache=True)
    content = bytearray(fs.cat_file(f"/vae/{WEIGHTS}"))
    content[-1] ^= 1
    fs.pipe_file(f"/vae/{WEIGHTS}", bytes(content))


@pytest.mark.parametrize("name", REPORTS)
def test_a_replaced_checkpoint_of_the_same_size_is_noticed(name: str, store: type[ReportingFileSystem]) -> None:
    store.report = staticmethod(REPORTS[name])
    first = read_card("reporting://vae").sha256
    assert first == read_card(str(TINY)).sha256
    assert store.downloads == 2
    assert read_card("reporting://vae").sha256 == first
    is_cached = name != "no versions"
    assert store.downloads == (2 if is_cached else 4), "a copy is used again only if the store reports versions"
    replace_weights(store)
    assert read_card("reporting://vae").sha256 != first


def test_versions_that_only_info_reports_are_used(store: type[ReportingFileSystem]) -> None:
    """HTTP servers report nothing in a listing."""
    store.report = staticmethod(REPORTS["s3"])
    store.listings_report = False
    first = read_card("reporting://vae").sha256
    assert read_card("reporting://vae").sha256 == first and store.downloads == 2
    replace_weights(store)
    assert read_card("reporting://vae").sha256 != first


@pytest.mark.parametrize("name", REPORTS)
def test_tags_differ_between_contents_only(name: str) -> None:
    report = REPORTS[name]
    tags = [version_tag(report(content)) for content in (b"a", b"a", b"b")]
    assert tags[0] == tags[1]
    assert (tags[0] != tags[2]) == (name != "no versions")


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"ETag": '"5d41-2"', "LastModified": datetime(2026, 1, 1, tzinfo=UTC)}, "5d41-2"),
        ({"etag": "0x8DC", "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}, "0x8DC"),
        ({"etag": "CJD=", "md5Hash": "XUFA==", "generation": "17", "mtime": 3.0}, "CJD="),
        ({"md5Hash": "XUFA==", "generation": "17", "mtime": 3.0}, "XUFA=="),
        ({"mtime": 1767225600.25, "ino": 7}, "1767225600.25"),
        ({"created": 1.0}, ""),
    ],
)
def test_tags_that_plans_record_stay_as_they_are(info: dict[str, Any], tag: str) -> None:
    assert FileFacts.of(info | {"size": 5}) == FileFacts(size=5, etag=tag)


def test_a_local_checkpoint_behind_a_url_is_cached_by_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(TINY, tmp_path / "vae")
    card = read_card(f"file://{tmp_path}/vae")
    assert read_card(f"file://{tmp_path}/vae") == card
    assert len(list((tmp_path / ".cache" / "latentmill").iterdir())) == 1
