"""A web server that serves a folder as many web servers do and others do not: ``python -m tests.support.stores.web``.

Ours, on Python's HTTP server, in a process of its own. It lists no folders.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.paths import ROOT
from tests.support.stores.server import StoreServer, free_ports, listens, running

QUIRKS = {
    "chunked": "answers have no Content-Length",
    "gzip": "JSON and text are compressed for clients that accept it, without a Content-Length",
    "stored-gzip": "JSON and text are compressed for every client, with the length of the compressed bytes",
    "http10": "answers are HTTP/1.0 and end with the connection",
    "redirect": "every path is redirected to /moved/ followed by the path",
    "forbidden": "absent files are 403, as on S3 without the right to list",
    "no-head": "HEAD is not allowed",
    "head-is-get": "HEAD gets no Content-Length, GET does",
    "gone": "absent files are 410",
    "fallback": "absent files are a page with status 200, as single-page sites answer",
}
"""What a server may do differently, by the name of the option."""


class Handler(BaseHTTPRequestHandler):
    """Serves files below ``folder`` with ranges."""

    folder = Path()
    quirks: frozenset[str] = frozenset()
    log: Path | None = None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.log is not None:
            with self.log.open("a") as file:
                line = [self.command, self.path, self.headers.get("Range"), self.headers.get("Accept-Encoding")]
                file.write(json.dumps(line) + "\n")
        if self.command == "HEAD" and "no-head" in self.quirks:
            return self.answer(405, b"")
        if "redirect" in self.quirks:
            if not path.startswith("/moved/"):
                return self.answer(302, b"", {"Location": f"/moved{self.path}"})
            path = path.removeprefix("/moved")
        file = (self.folder / path.lstrip("/")).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            return self.answer_absent()
        content = file.read_bytes()
        if file.suffix in (".json", ".txt") and self.compresses():
            return self.answer(200, gzip.compress(content), {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(200, content, {"Accept-Ranges": "bytes"})
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.answer(206, content[first : last + 1], headers)

    do_HEAD = do_GET

    def compresses(self) -> bool:
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        return "stored-gzip" in self.quirks or ("gzip" in self.quirks and accepted)

    def answer_absent(self) -> None:
        if "fallback" in self.quirks:
            return self.answer(200, b"<!doctype html><title>Home</title>", {"Content-Type": "text/html"})
        self.answer(403 if "forbidden" in self.quirks else 410 if "gone" in self.quirks else 404, b"<html>no</html>")

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        no_length = "gzip" in self.quirks and "Content-Encoding" in headers
        no_length |= "head-is-get" in self.quirks and self.command == "HEAD"
        chunked = ("chunked" in self.quirks or no_length) and status < 300
        if "http10" in self.quirks:
            self.close_connection = True
        elif chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if chunked and "http10" not in self.quirks:
            for start in range(0, len(content), 1 << 16):
                piece = content[start : start + (1 << 16)]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Print nothing when a reader closes its connection."""


@contextmanager
def web_server(folder: Path, state: Path, *quirks: str) -> Iterator[StoreServer]:
    """Serve ``folder``. ``state`` is a new folder for the logs; ``requests`` in it has a JSON list for each request."""
    assert set(quirks) <= QUIRKS.keys()
    state.mkdir(parents=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.support.stores.web", str(port), str(folder), *quirks]
    command.append(f"--requests={state}/requests")
    with running(command, state / "log", lambda: listens(port), {"PYTHONPATH": str(ROOT)}) as pid:
        url = f"http://127.0.0.1:{port}"
        yield StoreServer(name="web server", version="ours", url=url, endpoint=url, log=state / "log", pids=[pid])


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "quirks", nargs="*", choices=list(QUIRKS), help="; ".join(f"{k}: {v}" for k, v in QUIRKS.items())
    )
    parser.add_argument("--requests", type=Path, help="file to which a JSON list for each request is written")
    arguments = parser.parse_args()
    Handler.folder, Handler.quirks = arguments.folder.resolve(), frozenset(arguments.quirks)
    Handler.log = arguments.requests
    Handler.protocol_version = "HTTP/1.0" if "http10" in Handler.quirks else "HTTP/1.1"
    Server(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
