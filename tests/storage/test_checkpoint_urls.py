"""Checkpoints and joined tables behind URLs go through the door of sources: schemes, retries, no secrets in errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.encode_dataset import main
from pipeline.errors import ConfigError, StoreError
from pipeline.storage import retry
from pipeline.storage.checkpoint import local_checkpoint
from pipeline.storage.joined_tables import read_table
from stvae import read_card
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    monkeypatch.setenv("HOME", str(tmp_path))


def listing(path: str) -> Reply:
    """A folder of a web server, which asks for a signature."""
    name = path.partition("?")[0].rpartition("/")[2]
    if not name:
        return Reply("".join(f'<a href="{file.name}">x</a>' for file in TINY.iterdir()).encode())
    file = TINY / name
    return Reply(file.read_bytes(), headers={"ETag": f'"{name}"'}) if file.is_file() else Reply(status=404)


def test_a_checkpoint_is_read_from_a_server_that_fails_now_and_then() -> None:
    count = 0

    def answer(path: str) -> Reply:
        nonlocal count
        count += 1
        return Reply(status=503) if count % 4 == 1 else listing(path)

    with serving(answer) as server:
        folder = local_checkpoint(f"{server.url}/vae/")
        assert read_card(folder).sha256 == read_card(str(TINY)).sha256
        assert local_checkpoint(f"{server.url}/vae/") == folder
    assert local_checkpoint("demo") == "demo" and local_checkpoint(str(TINY)) == str(TINY)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("simplecache::http://me:SECRET@host/vae?sig=SECRET", "chains file systems"),
        ("memory://vae", "not supported"),
        ("s3a://me:SECRET@bucket/vae", "give 's3://bucket/vae'"),
        ("file:///nowhere/vae", "there is no VAE at 'file:///nowhere/vae'"),
    ],
)
def test_a_checkpoint_url_that_cannot_be_used_is_one_sentence(
    url: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--source", "x", "--output", str(tmp_path / "out"), "--vae", url, "--buckets", "32x32x17"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert message in printed.out and printed.out.count("\n") == 1 and "SECRET" not in printed.out + printed.err


@pytest.mark.parametrize(("status", "error"), [(403, StoreError), (503, StoreError), (404, ConfigError)])
def test_errors_of_joined_tables_and_checkpoints_have_no_secrets(status: int, error: type[Exception]) -> None:
    with serving(lambda path: Reply(status=status)) as server:
        url = server.url.replace("//", "//me:SECRET@")
        for read in (local_checkpoint, read_table):
            with pytest.raises(error, match=f"{server.url}/a/x.parquet") as failure:
                read(f"{url}/a/x.parquet?sig=SEC/RET")
            assert "SEC" not in str(failure.value)
