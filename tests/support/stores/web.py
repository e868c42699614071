"""A web server with the habits of many: ``python -m tests.support.stores.web PORT FOLDER``.

It is ours, on Python's HTTP server, in a process of its own. The first part of a path names the habits, joined by ``+``:
``/chunked+forbidden/index/0000.json``. It lists no folders, and answers 403 for files without permission to read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.http_server import QuietServer
from tests.support.paths import ROOT
from tests.support.stores.server import StoreServer, free_ports, listens, running

HABITS = {
    "plain": "answers have a Content-Length, ranges work, absent files are 404",
    "chunked": "answers have no Content-Length",
    "gzip": "JSON and text are compressed for clients that accept it, without a Content-Length",
    "gzip-all": "every file is compressed for clients that accept it, and ranges of such answers are ignored",
    "stored-gzip": "JSON and text are compressed for every client, with the length of the compressed bytes",
    "http10": "answers are HTTP/1.0 and end with the connection",
    "redirect": "every path is redirected to the same path below /plain",
    "forbidden": "absent files are 403, as on S3 without the right to list",
    "gone": "absent files are 410",
    "fallback": "absent files are a page with status 200, as sites of one page answer",
    "no-head": "HEAD is not allowed",
    "no-ranges": "ranges are ignored",
}


class Handler(BaseHTTPRequestHandler):
    """Serves files below ``folder``."""

    disable_nagle_algorithm = True
    folder = Path()
    log: Path | None = None
    habits: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(json.dumps([self.command, self.path]) + "\n")
        habits, _, path = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        self.habits = frozenset(habits.split("+"))
        self.protocol_version = "HTTP/1.0" if "http10" in self.habits else "HTTP/1.1"
        file = (self.folder / path).resolve()
        if self.command == "HEAD" and "no-head" in self.habits:
            self.answer(405, b"")
        elif "redirect" in self.habits:
            self.answer(302, b"", {"Location": f"/plain/{path}"})
        elif not self.habits <= HABITS.keys() or not file.is_relative_to(self.folder) or not file.is_file():
            self.answer_absent()
        elif not file.stat().st_mode & stat.S_IRUSR:
            self.answer(403, b"<html>Forbidden</html>")
        else:
            self.answer_file(file)

    do_HEAD = do_GET

    def answer_absent(self) -> None:
        if "fallback" in self.habits:
            self.answer(200, b"<!doctype html><title>Home</title>", {"Content-Type": "text/html"})
        else:
            status = 403 if "forbidden" in self.habits else 410 if "gone" in self.habits else 404
            self.answer(status, b"<html>Not here</html>")

    def answer_file(self, file: Path) -> None:
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.compresses(file.suffix):
            self.answer(200, gzip.compress(content), {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
        elif wanted is None or "no-ranges" in self.habits:
            self.answer(200, content)
        elif int(wanted[1]) >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            self.answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def compresses(self, suffix: str) -> bool:
        accepted, is_text = "gzip" in self.headers.get("Accept-Encoding", ""), suffix in (".json", ".txt")
        if is_text and ("stored-gzip" in self.habits or ("gzip" in self.habits and accepted)):
            return True
        return "gzip-all" in self.habits and accepted

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = headers or {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        chunked = "chunked" in self.habits or ("gzip" in self.habits and "Content-Encoding" in headers)
        if "http10" in self.habits:
            chunked, self.close_connection = False, True
        elif chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(content), 1 << 16) if chunked else ():
            piece = content[start : start + (1 << 16)]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n" if chunked else content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def web_server(folder: Path, state: Path) -> Iterator[StoreServer]:
    """Serve ``folder``. ``state`` is a new folder for logs; its file ``requests`` has method and path of each request."""
    state.mkdir(parents=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.support.stores.web", str(port), str(folder), str(state / "requests")]
    with running(command, state / "log", lambda: listens(port), {"PYTHONPATH": str(ROOT)}) as pid:
        url = f"http://127.0.0.1:{port}"
        yield StoreServer(name="web server", version="ours", url=url, endpoint=url, log=state / "log", pids=[pid])


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requests", type=Path, help="file to which method and path of each request are written")
    arguments = parser.parse_args()
    Handler.folder, Handler.log = arguments.folder.resolve(), arguments.requests
    QuietServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
