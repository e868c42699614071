"""Outputs on file systems that lack something: hard links, folders that can be synced, answers that are always right."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.local.files import NO_FOLDER_SYNC, NO_LINKS, UNSYNCED_FOLDERS
from pipeline.storage.probe import open_output
from pipeline.storage.store import PARTIAL, Store

fsync, real_stat = os.fsync, os.stat


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WAITS, "sleep", lambda seconds: None)


@pytest.mark.parametrize("number", sorted(set(NO_LINKS)), ids=errno.errorcode.__getitem__)
def test_a_disk_without_hard_links_names_single_writer_which_works_there(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match=r"no hard links .*give --single-writer"):
        open_output(str(tmp_path / "out"))
    with pytest.raises(StoreError, match=r"shards/a\.tar: .*no hard links .*give --single-writer"):
        Store(str(tmp_path / "out")).put_new("shards/a.tar", b"")
    store = open_output(str(tmp_path / "out"), single_writer=True)
    assert store.put_new("a", b"1") and not store.put_new("a", b"2") and store.get("a") == b"1"


@pytest.mark.parametrize("number", sorted(set(NO_FOLDER_SYNC)), ids=errno.errorcode.__getitem__)
def test_a_disk_that_syncs_no_folders_costs_a_note(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync_files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    store = open_output(str(tmp_path / "out"))
    assert store.notes == {UNSYNCED_FOLDERS}
    assert store.put_new("a", b"1") and not store.put_new("a", b"2")
    monkeypatch.setattr(os, "fsync", fsync)
    assert not open_output(str(tmp_path / "out")).notes


def test_a_file_whose_sync_failed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ``fsync`` of the same file succeeds on Linux, although its pages are lost."""
    synced: list[int] = []

    def fail_once(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_once)
    store = Store(str(tmp_path / "out"))
    with store.scratch() as scratch:
        scratch.write_bytes(b"tar")
        written = real_stat(scratch).st_ino
        assert store.put_new("shards/a.tar", scratch)
    assert store.get("shards/a.tar") == b"tar"
    assert synced[0] == written and synced[1] == real_stat(tmp_path / "out" / "shards" / "a.tar").st_ino != written


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_listing_tries_again(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "out"))
    store.put_new("shards/a.tar", b"123")
    failures = iter([True, True])

    def fail_first(path: str, *arguments: object, **keywords: bool) -> os.stat_result:
        if str(path).endswith("a.tar") and next(failures, False):
            raise OSError(number, os.strerror(number))
        return real_stat(path, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", fail_first)
    assert store.list_files("shards") == {"shards/a.tar": 3}


@pytest.mark.parametrize("folder", [PARTIAL, "metadata"])
def test_a_file_with_the_name_of_a_folder_is_not_taken_for_the_file_to_create(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).write_bytes(b"")
    store = Store(str(tmp_path))
    for write in (store.put_new, store.put):
        with pytest.raises(StoreError, match=rf"a file has the name of the folder '{folder}'"):
            write("metadata/a", b"")


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StoreError, match=rf"out/{PARTIAL}: "), Store(str(tmp_path / "out")).scratch():
        pass


@pytest.mark.parametrize("stray", [".nfs000000000001", ".DS_Store", "notes.json", "a-b", "host-x-1", "--"])
def test_sweeping_leaves_strays(stray: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    store.put_new("a", b"")
    folder = tmp_path / "out" / PARTIAL
    (folder / stray).write_bytes(b"")
    with store.scratch() as scratch:
        parts = scratch.name.rsplit("-", 2)
    (folder / f"{parts[0]}-999999999-folder").mkdir()
    store.sweep()
    assert {path.name for path in folder.iterdir()} == {stray, f"{parts[0]}-999999999-folder"}
