"""A real S3 server behind a proxy that fails: every promise holds, and an outage ends in a clear error."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import boto3
import pytest
import s3fs

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, Rejected, StoreError
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources import fetch as fetch_module
from pipeline.storage.drivers.waits import WAITS
from stvae import Card
from tests.sources.test_sources import read_items
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.golden import TINY
from tests.support.oracle import assert_never_torn, assert_sound, tree
from tests.support.painted import SIZE, assert_together, painted, write_video
from tests.support.s3_habits import lists_no_uploads, s3_with

NUM_VIDEOS = 8


@pytest.fixture
def videos(s3: str, tmp_path: Path) -> str:
    """URL of a folder of painted videos on the server."""
    for number in range(NUM_VIDEOS):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    s3fs.S3FileSystem(skip_instance_cache=True).put(str(tmp_path / "videos"), f"{s3}/videos", recursive=True)
    return f"{s3}/videos"


@pytest.fixture
def proxy(videos: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy between this process's clients and the server. The clients' own retries are off, so that ours are needed."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"], share=0.0, seed=secrets.randbelow(10**6)) as (url, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


def job(videos: str, output: str, card: Card) -> Summary:
    recipe = Recipe(vae=card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(2,), unit_clips=2, windows="all")
    run = Run(output=output, vae=str(TINY), sources=(f"videos={videos}",), local=True, cpus=1, max_rejects=1.0)
    with painted():
        return encode(recipe, run, card, say=lambda line: None)


def download(s3: str, folder: Path) -> Path:
    """A copy of the output, read from the server without the proxy."""
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if fs.exists(f"{s3}/out"):
        fs.get(f"{s3}/out", str(folder), recursive=True)
    return folder


def test_a_job_behind_a_failing_proxy_ends_like_an_undisturbed_one(
    s3: str, videos: str, proxy: FaultyProxy, tiny_card: Card, tmp_path: Path
) -> None:
    proxy.share = 0.2
    job(videos, f"{s3}/out", tiny_card)
    assert sum(proxy.met.values()) > 10 and len(proxy.met) == 6, proxy.met
    proxy.share = 0.0
    output = download(s3, tmp_path / "copy")
    rows = assert_sound(output)
    assert_together(rows, output)
    assert not [row for row in rows if row["reject_reason"]], "faults of the store must not become rejects"
    job(videos, f"{s3}/undisturbed", tiny_card)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    fs.get(f"{s3}/undisturbed", str(tmp_path / "undisturbed"), recursive=True)
    assert tree(output) == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize(("outage", "message"), [("503", "reduce your request rate"), ("403", "expired")])
def test_an_outage_ends_in_an_error_that_names_the_file_and_the_job_can_go_on(
    s3: str, videos: str, proxy: FaultyProxy, tiny_card: Card, tmp_path: Path, outage: str, message: str
) -> None:
    def fetch_then_fail(*arguments: object) -> int:
        if next(calls) == 5:
            proxy.outage = outage
        return fetch(*arguments)  # type: ignore[arg-type]

    fetch, calls = fetch_module.fetch, iter(range(1000))
    with (
        mock.patch("pipeline.encode.shard_attempt.fetch", fetch_then_fail),
        mock.patch.object(WAITS, "sleep"),  # no pauses between retries
        mock.patch.object(s3fs.S3FileSystem, "retries", 1),
        pytest.raises(StoreError, match=f"bucket/.*{message}"),
    ):
        job(videos, f"{s3}/out", tiny_card)
    proxy.outage = None
    before = assert_never_torn(download(s3, tmp_path / "before"))
    assert not [row for row in before if row["reject_reason"]]
    job(videos, f"{s3}/out", tiny_card)
    output = download(s3, tmp_path / "after")
    assert_together(assert_sound(output), output)


def test_a_refusal_of_one_row_is_its_reject_and_an_expired_token_is_an_error(
    s3: str, videos: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    recipe = Recipe(vae="x", buckets=(Bucket(17, *SIZE),), micro_batch=(2,))
    (tmp_path / "m.csv").write_text(f"path\n{videos}/0.mp4\n{videos}/gone.mp4\nhf://datasets/a/b/c.mp4\n")
    one, gone, no_driver = read_items(tmp_path, recipe, str(tmp_path / "m.csv"))
    with mock.patch.object(WAITS, "sleep"), mock.patch.object(s3fs.S3FileSystem, "retries", 1):
        fetch_module.fetch(one, recipe).close()
        with pytest.raises(Rejected) as missing:
            fetch_module.fetch(gone, recipe)
        with (
            mock.patch.object(s3fs.S3FileSystem, "_info", side_effect=PermissionError(13, "Forbidden")),
            mock.patch.object(s3fs.S3FileSystem, "_cat_file", side_effect=PermissionError(13, "Forbidden")),
        ):
            with pytest.raises(Rejected) as refused:
                fetch_module.fetch(one, recipe)
            one.trusted = True
            with pytest.raises(StoreError, match="Forbidden"):
                fetch_module.fetch(one, recipe)
        one.trusted, proxy.outage = False, "403"
        with pytest.raises(StoreError, match="expired"):
            fetch_module.fetch(one, recipe)
        proxy.outage = "503"
        with pytest.raises(StoreError, match="could not be read"):
            fetch_module.fetch(one, recipe)
    error = ImportError("install huggingface_hub")
    with (
        mock.patch("pipeline.storage.urls.open_client", side_effect=error),
        pytest.raises(Rejected) as driver,
    ):
        fetch_module.fetch(no_driver, recipe)
    assert [found.value.reject.name for found in (missing, refused, driver)] == [
        "fetch/not_found",
        "fetch/not_readable",
        "fetch/no_driver",
    ]
    assert "0.mp4 could not be read: Forbidden" in refused.value.reject.message
    assert "'hf://' URLs need the extra" in driver.value.reject.message


def test_uploads_in_parts_that_a_dead_writer_left_are_aborted_and_others_are_not(
    s3: str, videos: str, tiny_card: Card, tmp_path: Path
) -> None:
    job(videos, f"{s3}/first", tiny_card)
    client = boto3.client("s3")
    names = [row["Key"] for row in client.list_objects_v2(Bucket="bucket", Prefix="first/metadata/")["Contents"]]
    unit = names[0].rpartition("/")[2].partition(".")[0]
    for key in (f"out/shards/{unit}-00000000.tar", "out/shards/unplanned-00000000.tar", f"x/shards/{unit}-1.tar"):
        upload = client.create_multipart_upload(Bucket="bucket", Key=key)
        client.upload_part(Bucket="bucket", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 1000)
    job(videos, f"{s3}/out", tiny_card)
    remaining = {upload["Key"] for upload in client.list_multipart_uploads(Bucket="bucket")["Uploads"]}
    assert remaining == {"out/shards/unplanned-00000000.tar", f"x/shards/{unit}-1.tar"}


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied")])
def test_a_store_that_lists_no_uploads_costs_a_note(
    s3: str, videos: str, tiny_card: Card, status: int, code: str
) -> None:
    with s3_with(lists_no_uploads(status, code)):
        summary = job(videos, f"{s3}/out", tiny_card)
    assert summary.finished and summary.exit_code == 0
    (note,) = [note for note in summary.notes if "unfinished uploads" in note]
    assert f"{s3}/out/shards: " in note and f"uploads are not listed: {code}" in note
    objects = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]
    assert not [entry["Key"] for entry in objects if entry["Key"].startswith("out/attempts/")], "later steps ran too"


def test_a_missing_bucket_is_refused_before_anything_starts(s3: str, videos: str, tiny_card: Card) -> None:
    with pytest.raises(ConfigError, match="absent/out"):
        job(videos, "s3://absent/out", tiny_card)
