"""A small HTTP server on this machine whose answers a test decides, and which records its requests."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """An answer. The connection breaks after ``cut_at`` bytes of the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    ranges: bool = True


@dataclass
class Server:
    """The server's URL, and the path (with its query) of every request."""

    url: str
    asked: list[str] = field(default_factory=list)


class QuietServer(ThreadingHTTPServer):
    """A server for many readers, each in a thread of its own."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a reader closes its connection early, which is no fault of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def in_thread(server: ThreadingHTTPServer) -> Iterator[str]:
    """Answer requests inside the ``with`` block. Yields the server's URL."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{server.server_address[0]!s}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(
    answer: Callable[[str], Reply], host: str = "127.0.0.1", token: Callable[[], str] | None = None
) -> Iterator[Server]:
    """Run a server; ``answer`` gets the path of each request, with its query.

    token: the bearer token without which every request is refused.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            is_known = token is None or self.headers.get("Authorization") == f"Bearer {token()}"
            reply = answer(self.path) if is_known else Reply(status=401)
            body, status = reply.body, reply.status
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and reply.ranges and status == 200:
                first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                reply.headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                body, status = body[first : last + 1], 206
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: reply.cut_at])

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with in_thread(QuietServer((host, 0), Handler)) as url:
        server = Server(url)
        yield server
