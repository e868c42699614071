"""What a process says while it waits to make a request again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest

from pipeline.progress import wait_lines
from pipeline.progress.wait_lines import report_waits
from pipeline.recipe import Recipe
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item
from pipeline.storage import retry
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.drivers import waits
from pipeline.storage.drivers.waits import Pause, Waits
from pipeline.storage.retry import retried
from pipeline.storage.store import Store
from tests.support.http_server import Reply, serving


class Busy(OSError):
    """A server's answer 429 that asks for a long pause."""

    status = 429
    headers = {"Retry-After": "300"}  # noqa: RUF012


def test_a_wait_names_the_file_the_answer_and_the_retry(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv(retry.VARIABLE, "20")
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    monkeypatch.setattr(waits, "SHORTEST_SHOWN_S", 0.0)
    monkeypatch.setattr(process, "sleep", lambda s: said.extend(process.texts()))
    replies = iter([Reply(status=503), Reply(status=429), Reply(b"video")])
    with serving(lambda path: next(replies)) as server:
        fetch(Item(ordinal=0, key="", uri="", location=f"{server.url}/a.mp4?token=secret"), recipe).close()
        url = server.url
    assert re.fullmatch(rf"waiting 0 s for {url}/a\.mp4 \(HTTP 503\), retry 1; gives up after 20 s", said[0]), said
    assert (
        re.fullmatch(rf"waiting 0 s for {url}/a\.mp4 \(HTTP 429\), retry 2; gives up after 20 s", said[1])
        and len(said) == 2
    )
    assert process.total_s > 0


def test_a_wait_for_a_bucket_names_the_file_and_the_code_of_the_answer(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    said: list[str] = []
    monkeypatch.setenv(retry.VARIABLE, "20")
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    monkeypatch.setattr(waits, "SHORTEST_SHOWN_S", 0.0)
    monkeypatch.setattr(process, "sleep", lambda s: said.extend(process.texts()))
    store = Store(f"{s3}/out")
    store.put("a.json", b"{}")
    answer = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "9"}},
    }
    errors = iter([ClientError(answer, "GetObject")])  # type: ignore[arg-type]
    cat_file = store._fs.cat_file

    def busy(*arguments: object) -> bytes:
        if error := next(errors, None):
            raise error
        return cat_file(*arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(store._fs, "cat_file", busy, raising=False)
    assert store.get("a.json") == b"{}"
    (text,) = said
    assert re.fullmatch(
        rf"waiting \d+ s for {re.escape(s3)}/out/a.json \(HTTP 503 SlowDown\), retry 1; gives up after 20 s", text
    )


def test_pauses_are_shown_up_to_their_end_and_short_ones_are_not() -> None:
    now_s = 100.0
    process = Waits(lambda: now_s)
    pause = Pause(target="s3://b/x", problem="HTTP 503", retry=3, started_s=70.0, ends_s=110.0, patience_s=20.0)
    process.begin(pause)
    assert (
        process.texts() == ["waiting 30 s for s3://b/x (HTTP 503), retry 3; gives up after 20 s"]
        and process.total_s == 10.0
    )
    now_s = 111.0
    assert process.texts() == []
    process.begin(Pause(target="", problem="", retry=1, started_s=111.0, ends_s=111.4, patience_s=20.0))
    assert process.texts() == []


def fail_twice(error: Exception) -> Callable[[], bool]:
    """A call that raises ``error`` twice, then returns True."""
    failures = iter([error, error])

    def call() -> bool:
        if failure := next(failures, None):
            raise failure
        return True

    return call


def test_a_pause_ends_with_its_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a wait once the next try has begun, though the sleep was shorter than the pause."""
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    monkeypatch.setattr(waits, "SHORTEST_SHOWN_S", 0.0)
    said: list[int] = []
    monkeypatch.setattr(process, "sleep", lambda s: said.append(len(process.texts())))
    assert retried(fail_twice(Busy()))
    assert said == [1, 1] and process.texts() == []
    assert 0 < process.total_s < 60, "time that was not waited is not counted"


def test_a_pause_ends_when_its_sleep_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    monkeypatch.setattr(process, "sleep", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        retried(fail_twice(Busy()))
    assert process.texts() == [] and process.total_s < 60


def test_a_pause_ends_when_the_work_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    with process.given_up():
        assert retried(fail_twice(Busy()))
    assert process.texts() == []


def test_the_driver_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_lines, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(wait_lines, "WAITS", process := Waits())
    now_s = time.monotonic()
    process.begin(
        Pause(target="s3://b/x", problem="HTTP 503", retry=2, started_s=now_s - 9, ends_s=now_s + 60, patience_s=20.0)
    )
    said: list[str] = []
    with report_waits(said.append):
        time.sleep(0.3)
    assert said == ["waiting 9 s for s3://b/x (HTTP 503), retry 2; gives up after 20 s"]


def test_ctrl_c_ends_requests_that_wait_to_be_made_again() -> None:
    waiting = threading.Event()

    def refuse() -> NoReturn:
        waiting.set()
        raise Busy

    def request(number: int) -> None:
        if number:
            retried(refuse)
        assert waiting.wait(60)
        raise KeyboardInterrupt

    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(map_concurrently(request, [0, 1]))
    assert time.monotonic() - started_s < 60
