"""A secret in URLs and in the environment appears neither in the output of a job nor in the files that it writes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from jobs.encode_dataset import main
from pipeline.storage import retry
from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_image
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT

SECRET = "CaNaRy+7f3a91/0bE"  # noqa: S105 (a made-up secret)
TOKEN = "hf_CaNaRyAbCdEfGhIjKlMnOpQrStUvWx0123"  # noqa: S105 (a made-up token of the Hub)
KEY_ID = "AKIACANARY7F3A91"
PLAIN = {text: quote(text, safe="") for text in (SECRET, TOKEN, KEY_ID)}
FORMS = {form for text in (*PLAIN, *PLAIN.values()) for form in (text, base64.b64encode(text.encode()).decode())}
AZURE = f"sv=2022-11-02&ss=b&srt=sco&sp=r&se=2030-01-01&sig={PLAIN[SECRET]}"
AMAZON = f"X-Amz-Credential={KEY_ID}%2F20261126&X-Amz-Security-Token={PLAIN[SECRET]}&X-Amz-Signature={PLAIN[SECRET]}"
GOOGLE = f"GoogleAccessId=me&Expires=1&Signature={PLAIN[SECRET]}&access_token={PLAIN[SECRET]}"
QUERIES = (AZURE, AMAZON, GOOGLE, f"token={TOKEN}")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "HF_TOKEN": TOKEN,
    "AZURE_STORAGE_SAS_TOKEN": AZURE,
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={base64.b64encode(SECRET.encode()).decode()}",
    "GOOGLE_APPLICATION_CREDENTIALS": f"/{SECRET}.json",
}
FEW_TRIES = (
    "import os, sys; os.environ['LATENTMILL_PATIENCE_S'] = '0.3'; "
    "from jobs.encode_dataset import main; sys.exit(main())"
)


def run_job(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job as a process with credentials in its environment. Requests are tried twice, not six times."""
    environment = os.environ | ENVIRONMENT
    command = [sys.executable, "-c", FEW_TRIES, "--output", str(output), "--vae", str(TINY), "--buckets", "32x32x1"]
    command += ["--cpus", "2", "--max-rejects", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def leaks(output: Path, job: subprocess.CompletedProcess[str]) -> list[str]:
    """Places that contain the secret in any of its forms. Parquet is searched raw and decoded."""
    texts = {"stdout": job.stdout.encode(), "stderr": job.stderr.encode()}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        texts[str(path)] = path.read_bytes() + str(path).encode()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts[f"{path} decoded"] = (repr(table.to_pylist()) + repr(table.schema.metadata)).encode()
    return [name for name, text in texts.items() if any(form.encode() in text for form in FORMS)]


def answers(folder: Path, manifest: list[str]) -> dict[str, Reply]:
    picture = make_image(folder / "a.png", size=(32, 32)).read_bytes()
    tar = write_tar(folder / "a.tar", [("1.png", picture), ("2.png", picture), ("2.txt", b"caption")]).read_bytes()
    return {
        "/a.tar": Reply(tar),
        "/m.jsonl": Reply("".join(json.dumps({"url": url, "caption": "x"}) + "\n" for url in manifest).encode()),
        "/good.png": Reply(picture),
        "/forbidden.png": Reply(status=403),
        "/absent.png": Reply(status=404),
        "/cut.png": Reply(picture, cut_at=10),
        "/busy.png": Reply(status=503),
        "/moved.png": Reply(status=302, headers={"Location": f"http://169.254.169.254/?token={SECRET}"}),
    }


def test_a_secret_in_urls_and_environment_is_written_and_said_nowhere(tmp_path: Path) -> None:
    manifest: list[str] = []
    replies: dict[str, Reply] = {}
    query = f"?X-Amz-Signature={quote(SECRET, safe='')}&token={SECRET}#{SECRET}"
    with serving(lambda path: replies.get(path.partition("?")[0], Reply(status=404))) as server:
        with serving(lambda path: Reply()) as gone:
            pass
        names = "good forbidden absent cut busy moved".split()
        manifest += [f"{server.url}/{name}.png{query}" for name in names]
        manifest += [f"{gone.url}/a.png{query}", f"http://me:{quote(SECRET, safe='')}@127.0.0.1/a.png"]
        manifest += [f"pipe://me:{SECRET}@x/y", f"http://[{query}", f"relative.png{query}"]
        manifest += [f"{server.url}/forbidden.png?{signed}" for signed in QUERIES]
        manifest += [
            f"s3://{KEY_ID}:{SECRET}@b/x.png",
            f"s3://b/x.png?{AMAZON}",
            f"gs://b/x.png?{GOOGLE}",
        ]
        manifest += [f"hf://me:{TOKEN}@datasets/a/b/x.png", f"hf://datasets/a/b@{TOKEN}/x.png"]
        replies |= answers(tmp_path, manifest)
        with_password = server.url.replace("//", f"//me:{quote(SECRET, safe='')}@")
        sources = ["--source", f"{with_password}/a.tar{query}", "--source", f"{with_password}/m.jsonl{query}"]
        output = tmp_path / "out"
        job = run_job(output, "--local", "--allow-host", "127.0.0.1", *sources)
        assert job.returncode == 0, job.stdout + job.stderr
        assert any(SECRET in path for path in server.asked), "the secret must have been used"
        rows = assert_sound(output)
        assert sum(row["shard"] is not None for row in rows) == 3
        assert sum(row["reject_reason"] is not None for row in rows) == len(manifest) - 1
        assert leaks(output, job) == []
        replies["/a.tar"] = Reply(replies["/a.tar"].body, cut_at=100)
        for more in (sources, [*sources[2:], "--source", f"{with_password}/none.tar{query}"]):
            failed = run_job(tmp_path / "failed", "--local", *more)
            assert failed.returncode in (1, 2) and leaks(tmp_path / "failed", failed) == []
            assert "Traceback" not in failed.stderr and "error: " in failed.stdout
        refused = run_job(tmp_path / "refused", "--local", "--source", f"{with_password}/video.mp4{query}")
        assert refused.returncode == 2 and leaks(tmp_path / "refused", refused) == [], refused.stdout


def test_a_refused_url_is_named_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As source, output, checkpoint and configuration, on servers whose refusal repeats the whole request."""
    monkeypatch.setenv(retry.VARIABLE, "0")
    videos = make_image(tmp_path / "videos" / "a.png", size=(32, 32)).parent

    def refusal(path: str) -> Reply:
        words = f"<Error><Code>AuthenticationFailed</Code><Message>no access to {path}</Message></Error>"
        return Reply(words.encode(), status=403, headers={"Content-Type": "application/xml"})

    with serving(refusal) as server:
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL", "HF_ENDPOINT", "STORAGE_EMULATOR_HOST"):
            monkeypatch.setenv(name, server.url)
        endpoint = f"DefaultEndpointsProtocol=http;BlobEndpoint={server.url}/acct;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", endpoint + ENVIRONMENT["AZURE_STORAGE_CONNECTION_STRING"])
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
        plain = SECRET.replace("/", "")
        urls = [f"{base}?{query}" for base in ("az://c/x", "abfs://c@acct/x") for query in QUERIES[:1]]
        urls += [f"{base}?{query}" for base in (f"{server.url}/x", "s3://b/x", "gs://b/x") for query in QUERIES]
        urls += [
            f"s3://{KEY_ID}:{SECRET}@b/x",
            f"gs://me:{plain}@b/x",
            f"az://acct:{SECRET}@c/x",
            f"abfs://c:{SECRET}@acct/x",
        ]
        urls += [f"hf://{TOKEN}@datasets/a/b/x", f"hf://datasets/a/b@{TOKEN}/x", f"hf://datasets/a/b/x?token={TOKEN}"]
        for url in urls:
            tar = url.replace("/x", "/x.tar")
            for flags in (
                ["--source", tar, "--output", str(tmp_path / "o"), "--vae", str(TINY)],
                ["--source", str(videos), "--output", url, "--vae", str(TINY)],
                ["--source", str(videos), "--output", str(tmp_path / "o"), "--vae", url],
                ["--config", url, "--source", str(videos), "--output", str(tmp_path / "o"), "--vae", str(TINY)],
            ):
                code = main([*flags, "--buckets", "32x32x1", "--local", "--cpus", "1"])
                printed = "".join(capfd.readouterr())
                assert code in (1, 2) and "error: " in printed and "Traceback" not in printed, printed
                assert not [form for form in FORMS | {plain, quote(plain)} if form in printed], (flags, printed)
