"""Signed URLs, tokens and credentials that change: they reach the store, and nothing shows them."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.encode_dataset import main as encode
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, StoreError
from pipeline.loader import LatentDataset
from pipeline.storage import range_client
from pipeline.storage.drivers.options import VARIABLE, options_for
from pipeline.storage.range_client import open_ranges
from pipeline.storage.store import Store
from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_image
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving
from tests.support.latent_set import write_latents
from tests.support.s3_habits import Answer, Forward, error, s3_with
from tests.support.stores.azure import ACCOUNT, KEY, azurite
from tests.support.stores.server import NotFound, StoreServer

SECRET = "c4n4ry"  # noqa: S105 (a made-up secret)
NUMBER = 16


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "out", [Bucket(1, 32, 32)] * NUMBER)


def file_of(folder: Path, path: str) -> Reply:
    file = folder / path.partition("?")[0].lstrip("/")
    return Reply(file.read_bytes()) if file.is_file() else Reply(status=404)


@pytest.mark.parametrize("query", [f"X-Amz-Expires=9&X-Amz-Signature={SECRET}", f"sv=2026-01-01&sp=rl&sig={SECRET}%3D"])
def test_a_signed_url_signs_every_file_and_is_never_shown(output: Path, tmp_path: Path, query: str) -> None:
    expired = threading.Event()

    def answer(path: str) -> Reply:
        return file_of(output, path) if path.endswith(f"?{query}") and not expired.is_set() else Reply(status=403)

    ids = LatentDataset(output).columns["id"]
    scores = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": ids, "score": range(NUMBER)}), scores)
    with serving(answer) as server:
        data = LatentDataset(
            f"{server.url}/?{query}", join=[str(scores)], cache=tmp_path / "cache", cache_bytes=1 << 30
        )
        batches = data.batches(4)
        assert len({name for batch in batches for name in batch["id"]}) == NUMBER
        again = pickle.loads(pickle.dumps(data))  # noqa: S301
        assert again.read(data.samples.rows[:1])[0].any()
        expired.set()
        with pytest.raises(StoreError, match="403 Forbidden; the signature in the URL may have expired") as failure:
            again.read(data.samples.rows[:1])
        with pytest.raises(StoreError) as opening:
            LatentDataset(f"{server.url}/?{query}")
    shown = [repr(data), str(vars(data)), repr(batches), json.dumps(batches.state_dict()), str(failure.value), data.url]
    shown += [str(opening.value), *(str(path) for path in tmp_path.rglob("*"))]
    assert SECRET not in "".join(shown)


def test_headers_reach_the_store_and_only_its_host(output: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": LatentDataset(output).columns["id"], "score": range(NUMBER)}), output / "x.parquet")
    options = {"headers": {"Authorization": f"Bearer {SECRET}"}}
    with (
        serving(lambda path: file_of(output, path), token=lambda: SECRET) as server,
        serving(lambda path: file_of(output, path), token=lambda: SECRET) as other,
    ):
        with pytest.raises(StoreError, match="401 Unauthorized") as failure:
            LatentDataset(server.url)
        data = LatentDataset(server.url, join=[f"{server.url}/x.parquet"], where="score < 8", storage_options=options)
        assert len({name for batch in data.batches(4) for name in batch["id"]}) == 8
        with pytest.raises(StoreError, match="401 Unauthorized"):
            LatentDataset(server.url, join=[f"{other.url}/x.parquet"], storage_options=options)
    assert SECRET not in str(failure.value) + repr(data) + str(vars(data))


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[StoreServer]:
    """Azurite, where it is installed."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(azurite(tmp_path / "server"))
        except NotFound as missing:
            pytest.skip(str(missing))
        yield server


def test_a_signed_azure_url_signs_every_file_and_is_never_shown(
    output: Path, azure: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature may only read, for an hour or for no time at all; the environment has no key."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    with azure.in_environment():
        for path in output.rglob("*"):
            if path.is_file():
                Store("az://container/out").put(str(path.relative_to(output)), path.read_bytes())
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName={ACCOUNT};BlobEndpoint={azure.endpoint}")

    def signed(hours: int) -> str:
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        rights = ContainerSasPermissions(read=True, list=True)
        query = generate_container_sas(ACCOUNT, "container", KEY, permission=rights, expiry=expiry)
        return f"az://container/out?{query}"

    data = LatentDataset(signed(1), cache=tmp_path / "cache", cache_bytes=1 << 30)
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert len({name for batch in again.batches(4) for name in batch["id"]}) == NUMBER
    with pytest.raises(StoreError, match=r"403 .*; the signature in the URL may have expired") as failure:
        LatentDataset(signed(-1))
    with pytest.raises(StoreError, match=r"40[13] ") as unsigned:
        LatentDataset("az://container/out")
    shown = [repr(data), str(vars(data)), data.url, str(failure.value), str(unsigned.value)]
    shown += [str(path) for path in (tmp_path / "cache").rglob("*")]
    assert "sig=" not in "".join(shown)


def test_options_of_an_s3_store_reach_both_clients(output: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in output.rglob("*"):
        if path.is_file():
            Store(f"{s3}/out").put(str(path.relative_to(output)), path.read_bytes())
    options = {"key": "a", "secret": SECRET, "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for client in ("obstore", "fsspec"):
        monkeypatch.setenv(range_client.VARIABLE, client)
        batches = LatentDataset(f"{s3}/out", storage_options=options).batches(4)
        assert len({name for batch in batches for name in batch["id"]}) == NUMBER
    with pytest.raises(ConfigError, match=r"s3:// has no such storage option: .*no_such_option"):
        LatentDataset(f"{s3}/out", storage_options={"no_such_option": SECRET})


def test_a_job_takes_options_from_a_file_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tar, a manifest and its rows need a token, which is renewed between two runs."""
    token = SECRET
    picture = make_image(tmp_path / "a.png", size=(32, 32)).read_bytes()
    tar = write_tar(tmp_path / "a.tar", [("1.png", picture), ("2.png", picture)]).read_bytes()
    rows: list[str] = []
    answers = {"/a.tar": Reply(tar), "/row.png": Reply(picture)}
    options = tmp_path / "options.json"
    monkeypatch.setenv(VARIABLE, str(options))

    def run() -> int:
        options.write_text(json.dumps({server.url: {"headers": {"Authorization": f"Bearer {token}"}}}))
        command = ["--output", str(tmp_path / "out"), "--vae", str(TINY), "--buckets", "32x32x1", "--local"]
        command += ["--allow-host", "127.0.0.1"]
        return encode([*command, "--source", f"{server.url}/a.tar", "--source", f"{server.url}/m.jsonl"])

    def answer(path: str) -> Reply:
        rows[:] = [json.dumps({"url": f"{server.url}/row.png", "caption": "x"})]
        return answers.get(path) or (Reply("".join(rows).encode()) if path == "/m.jsonl" else Reply(status=404))

    with serving(answer, token=lambda: token) as server:
        assert run() == 0
        token = "renewed"  # noqa: S105
        assert run() == 0
    assert len(LatentDataset(tmp_path / "out")) == 3
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    assert SECRET not in out + err and SECRET.encode() not in written


def test_options_are_those_of_the_longest_url_and_of_no_neighbor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "options.json"
    monkeypatch.setenv(VARIABLE, str(file))
    file.write_text(json.dumps({"https://host": {"a": 1}, "https://host/out": {"b": 2}, "s3://": {"profile": "x"}}))
    assert options_for("https://host/out/x?sig=1") == {"b": 2} == options_for("https://user@HOST/out")
    assert options_for("https://host/other") == {"a": 1} == options_for("https://host?x")
    assert options_for("https://host.evil/out") == {} == options_for("http://host/out")
    assert options_for("s3://any/x") == {"profile": "x"}
    for content, words in ((f"{{{SECRET}", "cannot be read as JSON"), ("[1]", "an object of options for each URL")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=words) as failure:
            options_for("https://host")
        assert SECRET not in str(failure.value)
    file.unlink()
    with pytest.raises(ConfigError, match=r"LATENTMILL_STORAGE_OPTIONS names .*options.json', which cannot be read"):
        Store("https://host/out")


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with the only credentials of this process."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    yield file


@pytest.mark.parametrize("client", ["auto", "fsspec"])
def test_credentials_in_a_file_that_changes_are_renewed(
    s3: str, client: str, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = "FIRST"

    def habit(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        lower = {name.lower(): value for name, value in headers.items()}
        if f"Credential={valid}/" in lower.get("authorization", ""):
            return forward(method, path, headers, body)
        return error(400, "ExpiredToken", "The provided token has expired.")

    def write_key(key: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=x\naws_session_token=t\n")

    monkeypatch.setenv(range_client.VARIABLE, client)
    write_key("FIRST")
    with s3_with(habit):
        store = Store(f"{s3}/out")
        store.put("file", b"0123456789")
        read = open_ranges(store)
        assert read("file", 2, 3) == b"234"
        valid = "SECOND"
        write_key("SECOND")
        assert read("file", 2, 3) == b"234" and store.size("file") == 10 and store.get("file") == b"0123456789"
        valid = "THIRD"
        with pytest.raises(StoreError, match=r"out/file: .*ExpiredToken.*has expired"):
            read("file", 2, 3)
        with pytest.raises(StoreError, match=r"out/file: .*ExpiredToken.*has expired"):
            store.get("file")


CREDENTIAL_PROCESS = """#!/bin/sh
test -e "$0.broken" && { echo "the sign-in has ended" >&2; exit 3; }
echo run >> "$0.runs"
printf '{"Version": 1, "AccessKeyId": "K%s", "SecretAccessKey": "x", "SessionToken": "t", "Expiration": "%s"}' \\
    "$(date +%s)" "$(date -u -d '+2 seconds' +%FT%TZ)"
"""


@pytest.mark.parametrize("client", ["auto", "fsspec"])
def test_credentials_of_a_process_are_renewed_when_they_expire(
    output: Path, s3: str, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key holds for two seconds. The AWS configuration names the command that gives the next one."""

    def habit(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        lower = {name.lower(): value for name, value in headers.items()}
        key = re.search(r"Credential=K(\d+)/", lower.get("authorization", ""))
        if key and time.time() - int(key[1]) < 3:
            return forward(method, path, headers, body)
        return error(400, "ExpiredToken", "The provided token has expired.")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    command = tmp_path / "give_key"
    command.write_text(CREDENTIAL_PROCESS)
    command.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile training]\ncredential_process = {command}\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "training")
    monkeypatch.setenv(range_client.VARIABLE, client)
    with s3_with(habit):
        store = Store(f"{s3}/out")
        for path in output.rglob("*"):
            if path.is_file():
                store.put(str(path.relative_to(output)), path.read_bytes())
        data = LatentDataset(f"{s3}/out")
        for pause_s in (3.1, 0.0):
            assert len({name for batch in data.batches(4) for name in batch["id"]}) == NUMBER
            time.sleep(pause_s)
        assert store.get("dataset.json") == (output / "dataset.json").read_bytes()
        runs = len(Path(f"{command}.runs").read_text().splitlines())
        assert runs >= 2
        Path(f"{command}.broken").touch()
        with pytest.raises(StoreError, match=r"out/dataset.json: .*the sign-in has ended") as failure:
            Store(f"{s3}/out").with_own_client().get("dataset.json")
    assert "\n" not in str(failure.value)
