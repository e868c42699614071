"""An HTTP proxy before the S3 server that answers 503, resets connections, loses answers, cuts bodies and waits."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "503 after success", "reset", "reset after success", "cut", "slow")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED = b"<Error><Code>ExpiredToken</Code><Message>The credentials have expired.</Message></Error>"


class FaultyProxy:
    """Passes requests on to ``target``. A share of them, chosen at random by ``seed``, meets a fault."""

    def __init__(self, target: str, share: float, seed: int) -> None:
        self.target = urlsplit(target)
        self.share = share
        self.outage: str | None = None
        """The status, ``503`` or ``403``, that every request gets from now on."""
        self.met: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def fault(self) -> str | None:
        """The fault of the next request, if it meets one."""
        with self._lock:
            if self.outage or self._random.random() >= self.share:
                return self.outage
            fault = self._random.choice(FAULTS)
            self.met[fault] += 1
            return fault

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Pass a request on; status, headers and body of the server's answer."""
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


@contextmanager
def faulty_proxy(target: str, share: float, seed: int) -> Iterator[tuple[str, FaultyProxy]]:
    """Run the proxy; yields its URL and the proxy."""
    proxy = FaultyProxy(target, share, seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault()
            if fault == "slow":
                time.sleep(0.2)
            if fault in ("503", "403"):
                return self.answer(int(fault), {}, SLOW_DOWN if fault == "503" else DENIED)
            if fault == "reset":
                return self.reset()
            status, headers, content = proxy.forward(self.command, self.path, dict(self.headers), body)
            if fault == "503 after success":
                return self.answer(503, {}, SLOW_DOWN)
            if fault == "reset after success":
                return self.reset()
            if fault == "cut" and content and self.command == "GET":
                self.answer(status, headers, content, sent=content[: len(content) // 2])
                return self.reset()
            self.answer(status, headers, content)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def answer(self, status: int, headers: dict[str, str], content: bytes, sent: bytes | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if sent is None else sent)

        def reset(self) -> None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", proxy
    finally:
        server.shutdown()
        server.server_close()
