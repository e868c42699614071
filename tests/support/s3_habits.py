"""The S3 server of the tests behind a proxy that gives it the habits of other servers."""

from __future__ import annotations

import base64
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from tests.support.faulty_proxy import FaultyProxy, faulty_proxy

Answer = tuple[int, dict[str, str], bytes]
Forward = Callable[[str, str, dict[str, str], bytes], Answer]
Habit = Callable[[Forward, str, str, dict[str, str], bytes], Answer]
"""Answers a request (method, path, headers, body). The first argument passes a request on to the server."""


@contextmanager
def s3_with(habit: Habit) -> Iterator[FaultyProxy]:
    """Put a proxy with a habit between this process's clients and the server."""

    def forward(self: FaultyProxy, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return habit(lambda *request: plain(self, *request), method, path, headers, body)

    plain = FaultyProxy.forward
    with (
        mock.patch.object(FaultyProxy, "forward", forward),
        faulty_proxy(os.environ["AWS_ENDPOINT_URL"], share=0.0, seed=0) as (url, proxy),
        mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"}),
    ):
        yield proxy


def error(status: int, code: str, message: str) -> Answer:
    """An answer that S3's clients understand as an error."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, {"Content-Type": "application/xml"}, body.encode()


def is_conditional(headers: dict[str, str]) -> bool:
    """Return whether a request is to create an object only if it is absent."""
    return any(name.lower() == "if-none-match" for name in headers)


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    """The headers without one of them."""
    return {key: value for key, value in headers.items() if key.lower() != name}


def short_412(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Says 412 without AWS's ``<Condition>``, as SeaweedFS and VersityGW do."""
    answer = forward(method, path, headers, body)
    return error(412, "PreconditionFailed", "a condition did not hold") if answer[0] == 412 else answer


def looks_first(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Looks whether the object is there, and writes it a moment later."""
    if method != "PUT" or not is_conditional(headers):
        return forward(method, path, headers, body)
    if forward("HEAD", path, {}, b"")[0] == 200:
        return error(412, "PreconditionFailed", "a condition did not hold")
    time.sleep(0.3)
    return forward(method, path, without(headers, "if-none-match"), body)


def replaces_by_parts(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Keeps the condition of one request, and ignores that of an upload in parts."""
    return forward(method, path, without(headers, "if-none-match") if method == "POST" else headers, body)


def knows_no_conditions(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Refuses conditional requests, as servers do that know none."""
    if is_conditional(headers):
        return error(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
    return forward(method, path, headers, body)


def conflicts_once() -> Habit:
    """Says once for each object that another conditional request is under way."""
    met: set[str] = set()
    lock = threading.Lock()

    def habit(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        with lock:
            first = is_conditional(headers) and path.partition("?")[0] not in met
            met.add(path.partition("?")[0])
        if first:
            return error(409, "ConditionalRequestConflict", "a conflicting operation occurred")
        return forward(method, path, headers, body)

    return habit


def lists_no_uploads(status: int, code: str) -> Habit:
    """Refuses to list unfinished uploads."""

    def habit(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if method == "GET" and "uploads" in path.partition("?")[2].split("&")[0]:
            return error(status, code, f"uploads are not listed: {code}")
        return forward(method, path, headers, body)

    return habit


def ranges_with_200(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Sends the range, but with status 200, as ``rclone serve s3`` does."""
    status, answer_headers, content = forward(method, path, headers, body)
    return (200 if status == 206 else status), answer_headers, content


def ignores_ranges(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Sends the whole object to every request for a range."""
    return forward(method, path, without(headers, "range"), body)


def checksum_of_the_whole(forward: Forward, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Sends the checksum of the whole object with every range."""
    status, answer_headers, content = forward(method, path, headers, body)
    if status == 206:
        whole = forward(method, path, without(headers, "range"), body)[2]
        checksum = zlib.crc32(whole).to_bytes(4, "big")
        answer_headers = answer_headers | {"x-amz-checksum-crc32": base64.b64encode(checksum).decode()}
    return status, answer_headers, content
