"""An output is only opened on a store that creates a file once, for two writers at the same time as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest

from pipeline.errors import ConfigError
from pipeline.storage import connection
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.probe import REPLACES_BY_PARTS, open_output
from pipeline.storage.store import Store
from tests.support.s3_habits import (
    Habit,
    conflicts_once,
    knows_no_conditions,
    looks_first,
    replaces_by_parts,
    s3_with,
    short_412,
)


def test_an_object_that_is_there_is_no_error_whatever_the_body_of_the_412(s3: str) -> None:
    with s3_with(short_412):
        store = open_output(f"{s3}/out")
        assert store.list_files("") == {}, "the probe left files"
        assert store.put_new("a", b"first") and not store.put_new("a", b"second")
        assert not store.replaces_by_parts("a") and store.get("a") == b"first"
        uploads = boto3.client("s3").list_multipart_uploads(Bucket="bucket")
        assert not uploads.get("Uploads")


def test_a_conflict_of_conditional_requests_is_tried_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(WAITS, "sleep", pauses.append)
    with s3_with(conflicts_once()):
        store = Store(f"{s3}/out")
        assert store.put_new("a", b"first") and not store.put_new("a", b"second")
        assert store.get("a") == b"first" and pauses


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        (looks_first, "lets a second writer replace a file; give --single-writer"),
        (knows_no_conditions, "functionality that is not implemented.*; give --single-writer"),
    ],
)
def test_a_store_that_creates_a_file_twice_is_refused_unless_there_is_one_writer(
    s3: str, habit: Habit, message: str
) -> None:
    with s3_with(habit):
        with pytest.raises(ConfigError, match=message):
            open_output(f"{s3}/out")
        assert open_output(f"{s3}/out", single_writer=True).put_new("a", b"")


def test_a_store_whose_uploads_in_parts_replace_files_gets_one_request_per_file(s3: str, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(110 << 20))  # s3fs would upload it in parts
    with s3_with(replaces_by_parts):
        store = open_output(f"{s3}/out")
        assert store.notes == {REPLACES_BY_PARTS} and store.list_files("") == {}
        assert store.put_new("big", big) and not store.put_new("big", big)


def test_a_driver_that_looks_first_is_refused_although_no_race_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mode="create"`` of fsspec's own class, which the Hub's driver inherits, is no conditional request."""

    def open_other(url: str, options: object) -> tuple[Any, str]:
        return fsspec.filesystem("local", auto_mkdir=True), str(tmp_path)

    monkeypatch.setattr(connection, "open_filesystem", open_other)
    for url in ("hf://datasets/me/out", "s3://bucket/out"):
        with pytest.raises(ConfigError, match=r"only if it is absent; give --single-writer"):
            open_output(url)
    store = open_output("hf://datasets/me/out", single_writer=True)
    assert store.put_new("a", b"1") and not store.put_new("a", b"2") and store.get("a") == b"1"


@pytest.mark.parametrize("single_writer", [False, True])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret@host/out", "https:// cannot hold an output; outputs are folders or s3://"),
        ("webdav://host/out", "webdav:// cannot hold an output"),
        ("sftp://host/out", "sftp:// cannot hold an output"),
        ("memory://out", "memory:// cannot hold an output"),
        ("gcs://bucket/out", "written 'gs://' here: give 'gs://bucket/out'"),
        ("s3a://key:secret@bucket/out", "written 's3://' here: give 's3://bucket/out'"),
    ],
)
def test_other_stores_are_refused_by_name(url: str, message: str, single_writer: bool) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        open_output(url, single_writer=single_writer)
    assert "secret" not in str(refused.value)


def test_two_writers_of_the_probe_have_connections_of_their_own(s3: str) -> None:
    store = Store(f"{s3}/out")
    assert store.with_own_client().client[0] is not store.client[0]
