"""Proxies of ours before other servers: ``python -m tests.support.stores.proxies NAME PORT TARGET``.

``short-412`` answers 412 as VersityGW and others do: with AWS's code, but without ``<Condition>``. ``resumable`` makes
fake-gcs-server keep the condition of a resumable upload (``ifGenerationMatch=0``), which it keeps for simple uploads only.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

SHORT = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>PreconditionFailed</Code>'
    b"<Message>At least one of the pre-conditions you specified did not hold</Message></Error>"
)
CONDITION = {"domain": "global", "reason": "conditionNotMet", "location": "If-Match", "locationType": "header"}
NOT_MET = {"error": {"code": 412, "message": "At least one of the pre-conditions did not hold.", "errors": [CONDITION]}}
"""The body of Google Cloud Storage's 412."""
CANCELLED = 499
"""Google's status for an upload that its writer has cancelled."""
OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "date", "server")
"""Headers that the proxy sends itself."""


@dataclass
class Reply:
    """A server's answer."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    content: bytes = b""


class Proxy(BaseHTTPRequestHandler):
    """Passes every request on to ``target``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body, sent after its headers, would wait 40 ms for an acknowledgement of these
    target = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(self.reply(body))

    do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_GET

    def reply(self, body: bytes) -> Reply:
        """The answer to this request."""
        return self.forward(self.command, self.path, body, dict(self.headers))

    def forward(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        """The target's answer to a request."""
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def answer(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers:
            if name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
        length = str(len(reply.content))
        if self.command == "HEAD":
            length = {name.lower(): value for name, value in reply.headers}.get("content-length", length)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Short412(Proxy):
    """Replaces the body of every 412."""

    def reply(self, body: bytes) -> Reply:
        reply = super().reply(body)
        if reply.status == 412 and self.command != "HEAD":
            reply.content = SHORT
        return reply


class Resumable(Proxy):
    """Keeps the condition that an object must not exist when a resumable upload is completed.

    One upload is completed at a time, so that nothing happens between the check and the upload.
    """

    lock = threading.Lock()
    conditional: dict[str, str] = {}  # noqa: RUF012
    """Path of the object by the id of each upload that has the condition."""

    def reply(self, body: bytes) -> Reply:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if not url.path.startswith("/upload/"):
            return super().reply(body)
        with self.lock:
            if self.command in ("PUT", "POST") and self.completes():
                path = self.conditional.get(query.get("upload_id", ""))
                if path is not None and self.forward("GET", path).status == 200:
                    return Reply(412, [("Content-Type", "application/json")], json.dumps(NOT_MET).encode())
            reply = super().reply(body)
        if self.command == "DELETE":
            return Reply(CANCELLED)
        if query.get("uploadType") == "resumable" and query.get("ifGenerationMatch") == "0" and reply.status == 200:
            name = json.loads(reply.content)["name"]
            location = dict(reply.headers)["Location"]
            upload = parse_qs(urlsplit(location).query)["upload_id"][0]
            self.conditional[upload] = f"{url.path.removeprefix('/upload')}/{quote(name, safe='')}"
        return reply

    def completes(self) -> bool:
        """Whether this request sends the last bytes of an upload: its range ends at the total size, or it has none."""
        sent, _, total = self.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        last = sent.rpartition("-")[2]
        return not total or (total.isdigit() and (last == "*" or int(last) + 1 == int(total)))


PROXIES = {"short-412": Short412, "resumable": Resumable}


def main() -> None:
    """Serve until terminated."""
    handler = PROXIES[sys.argv[1]]
    handler.target = sys.argv[3]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
