"""Whatever a store answers ends in one sentence with its status and its own words, and without secrets."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Rejected, StoreError
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.storage import retry
from pipeline.storage.drivers import s3 as s3_driver
from pipeline.storage.drivers.errors import describe_error, is_transient, remote_errors, retry_after_s
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.retry import retried
from pipeline.storage.store import Store
from tests.sources.test_sources import read_items
from tests.support.http_server import Reply, serving
from tests.support.paths import ROOT

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def s3_error(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def azure_error(code: str, message: str) -> bytes:
    return s3_error(code, f"{message}\nRequestId:1\nTime:2")


def google_error(status: int, message: str) -> bytes:
    return json.dumps({"error": {"code": status, "message": message}}).encode()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses before further tries, which are not waited for."""
    found: list[float] = []
    monkeypatch.setattr(WAITS, "sleep", found.append)
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    yield found


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every client find its store at ``url``."""
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "STORAGE_EMULATOR_HOST": url,
        "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        f"AccountKey={KEY};BlobEndpoint={url}/devstoreaccount1;",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


ANSWERS = [
    (
        "s3",
        403,
        s3_error("SignatureDoesNotMatch", "The signature does not match."),
        "403 SignatureDoesNotMatch: The sig",
    ),
    (
        "s3",
        403,
        s3_error("RequestTimeTooSkewed", "The clocks differ too much."),
        "403 RequestTimeTooSkewed: The clocks",
    ),
    ("s3", 403, s3_error("InvalidAccessKeyId", "There is no such key."), "403 InvalidAccessKeyId: There is no such"),
    ("s3", 429, s3_error("TooManyRequests", "Wait."), "429 "),
    ("az", 401, azure_error("NoAuthenticationInformation", "Server failed."), "401 NoAuthenticationInformation: "),
    ("az", 403, azure_error("AuthenticationFailed", "Server failed."), "403 AuthenticationFailed: "),
    ("gs", 400, google_error(400, "Bucket is a requester pays bucket."), "400 Bucket is a requester pays bucket.$"),
    (
        "gs",
        401,
        google_error(401, "Anonymous caller does not have access"),
        "401 Anonymous caller does not have access$",
    ),
    ("gs", 403, google_error(403, "x@y may not list"), "403 .*x@y may not list$"),
    ("http", 401, b"", "401 Unauthorized"),
    ("http", 403, b"", "403 Forbidden"),
    ("http", 503, b"", "503 Service Unavailable"),
]


@pytest.mark.parametrize(("scheme", "status", "body", "words"), ANSWERS)
def test_an_error_keeps_the_stores_status_and_words(
    scheme: str,
    status: int,
    body: bytes,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = {"x-ms-error-code": words.split(" ")[1].rstrip(":")} if scheme == "az" else {}
    kind = "application/json" if scheme == "gs" else "application/xml"
    with serving(lambda path: Reply(body, status, {"Content-Type": kind} | code)) as server:
        point_at(server.url, monkeypatch)
        base = server.url if scheme == "http" else f"{scheme}://container"
        urls = (
            [f"{base}/x.tar?sig=SECRET"] if scheme == "http" else [f"{base}/x.tar", f"{base}/folder", f"{base}/*.tar"]
        )
        for url in urls:
            with pytest.raises(StoreError, match=words) as failure:
                find_sources([url])
            message = str(failure.value)
            assert message.startswith(f"{url.partition('?')[0]} ") and "\n" not in message and "SECRET" not in message
        with pytest.raises(StoreError, match=f"{status} "):
            Store(f"{base}/out").get("dataset.json")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("scheme", "code", "is_reject"),
    [
        ("s3", "InvalidAccessKeyId", True),
        ("s3", "SignatureDoesNotMatch", True),
        ("az", "AuthenticationFailed", True),
        ("s3", "ExpiredToken", False),
        ("s3", "RequestTimeTooSkewed", False),
    ],
)
def test_keys_that_only_rows_need_reject_the_rows_unless_they_have_expired(
    scheme: str,
    code: str,
    is_reject: bool,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    tmp_path: Path,
) -> None:
    (tmp_path / "m.csv").write_text(f"path\n{scheme}://container/x.mp4\n")
    (item,) = read_items(tmp_path, recipe, str(tmp_path / "m.csv"))
    body = azure_error(code, "Words of the store.") if scheme == "az" else s3_error(code, "Words of the store.")
    reply = Reply(body, 403, {"x-ms-error-code": code, "Content-Type": "application/xml"})
    with serving(lambda path: reply) as server:
        point_at(server.url, monkeypatch)
        with pytest.raises(Rejected if is_reject else StoreError) as failure:
            fetch(item, recipe)
        item.only_rows_name_store = False
        with pytest.raises(StoreError, match=f"403 {code}: "):
            fetch(item, recipe)
    if isinstance(failure.value, Rejected):
        assert failure.value.reject.name == "fetch/not_readable"
        assert f"container/x.mp4 could not be read: 403 {code}: " in failure.value.reject.message


@pytest.mark.parametrize("scheme", ["s3", "az", "gs", "http"])
def test_a_missing_bucket_or_file_is_a_wrong_argument(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"az": azure_error("ContainerNotFound", "None."), "gs": google_error(404, "None.")}.get(scheme, b"")
    with serving(lambda path: Reply(body, 404, {"x-ms-error-code": "ContainerNotFound"})) as server:
        point_at(server.url, monkeypatch)
        base = server.url if scheme == "http" else f"{scheme}://container"
        for url in (f"{base}/x.tar", f"{base}/folder", *([] if scheme == "http" else [f"{base}/*.tar"])):
            with pytest.raises(ConfigError, match=r"^(there is no|no videos)"):
                find_sources([url])
        with pytest.raises(FileNotFoundError):
            Store(f"{base}/out").get("dataset.json")


@pytest.mark.parametrize("scheme", ["s3", "az", "http"])
def test_a_pause_that_a_server_asks_for_is_kept(
    scheme: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    with serving(lambda path: Reply(b"", 429, {"Retry-After": "77"})) as server:
        point_at(server.url, monkeypatch)
        with pytest.raises(StoreError, match="429"):
            find_sources([f"{server.url if scheme == 'http' else f'{scheme}://container'}/x.tar"])
    assert all(77.0 <= pause < 80.0 for pause in pauses) and len(pauses) == 5  # 310 s in all, and one more


def test_missing_settings_are_a_wrong_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    for use in (lambda: find_sources(["az://container/x.tar"]), lambda: Store("az://container/out")):
        with pytest.raises(ConfigError, match=r"'az://container/\S+' cannot be opened: .*connection_string"):
            use()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "nonsense")
    with pytest.raises(ConfigError, match="Connection string is either blank or malformed"):
        find_sources(["az://container/x.tar"])


class Throttled(BaseHTTPRequestHandler):
    """A metadata service that refuses its first requests and then gives credentials."""

    refusals = 0

    def do_GET(self) -> None:
        if type(self).refusals > 0:
            type(self).refusals -= 1
            return self.send_error(429)
        credentials = {"Code": "Success", "AccessKeyId": "k", "SecretAccessKey": "s", "Token": "t"}
        body = json.dumps(credentials | {"Expiration": "2099-01-01T00:00:00Z"}).encode()
        body = {"/latest/api/token": b"token"}.get(self.path, b"role" if self.path.endswith("/") else body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_metadata_service_that_is_throttled_for_a_moment_is_asked_again(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    Throttled.refusals = 6
    metadata = HTTPServer(("127.0.0.1", 0), Throttled)
    threading.Thread(target=metadata.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{metadata.server_port}/")
    try:
        monkeypatch.setattr(WAITS, "sleep", lambda s: None)
        assert Store(f"{s3}/out").put_new("a", b"1")
        assert Throttled.refusals == 0
    finally:
        metadata.shutdown()
        metadata.server_close()


def test_no_credentials_at_all_is_said_at_once(
    s3: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="Unable to locate credentials"):
        Store(f"{s3}/out").put_new("a", b"1")
    assert not pauses and not s3_driver._metadata_service_answers()


def test_errors_of_clients_that_are_not_installed_are_not_imported() -> None:
    code = "import sys; from pipeline.storage.drivers.errors import *; print(remote_errors(), *sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("(<class 'OSError'>, <class 'TimeoutError'>) ")
    assert not {"aiohttp", "botocore", "azure", "gcsfs", "requests", "huggingface_hub"} & set(shown.split())


def test_a_description_is_one_line_without_secrets_and_control_characters() -> None:
    error = OSError("403 for https://user:hunter2@host/x?sig=SECRET\n\x1b[31mforged\r" + "x" * 9999)
    text = describe_error(error)
    assert "hunter2" not in text and "SECRET" not in text and text.isprintable() and len(text) < 500
    assert describe_error(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert (
        describe_error(OSError("<html><head><title>x</title></head><body>Bad  gateway</body></html>")) == "Bad gateway"
    )
    assert describe_error(TimeoutError()) == "the server did not answer in time"


def test_a_bad_certificate_is_not_tried_again() -> None:
    import aiohttp

    error = aiohttp.ClientConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert isinstance(error, remote_errors()) and not is_transient(error) and retry_after_s(error) is None


def test_no_further_try_begins_after_the_time_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that try for a long time themselves do not multiply our tries."""
    monkeypatch.setenv(retry.VARIABLE, "0.0")
    calls = []
    with pytest.raises(TimeoutError):
        retried(lambda: calls.append(1) or (_ for _ in ()).throw(TimeoutError()))
    assert len(calls) == 1


def test_clients_print_nothing_of_their_own(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from pipeline.storage.urls import open_filesystem

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    open_filesystem("gs://bucket/x")
    for name in (
        "gcsfs",
        "azure.core",
        "google.auth._default",
        "huggingface_hub.utils._http",
        "urllib3.connectionpool",
    ):
        logging.getLogger(name).warning("a page of log")
    assert "a page" not in capfd.readouterr().err
