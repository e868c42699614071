"""A local web server as slow as an object store: it answers range requests after a pause, at a limited rate."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

from tests.support.http_server import QuietServer

BLOCK_BYTES = 1 << 20


class Handler(SimpleHTTPRequestHandler):
    """Answers range requests for files."""

    protocol_version = "HTTP/1.1"
    latency_s = 0.0
    bytes_per_s = 1e12

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            time.sleep(self.latency_s)
            super().do_GET()
            return
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(requested[1]), min(int(requested[2] or size - 1), size - 1)) if requested else (0, size - 1)
        time.sleep(self.latency_s)
        self.send_response(206 if requested else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        if requested:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            remaining = last + 1 - first
            while remaining:
                block = file.read(min(remaining, BLOCK_BYTES))
                self.wfile.write(block)
                time.sleep(len(block) / self.bytes_per_s)
                remaining -= len(block)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def range_server(folder: Path, latency_s: float, bytes_per_s: float) -> Iterator[str]:
    """Serve a folder and yield its URL. The server is a separate process, so that it does not slow down the readers."""
    command = [sys.executable, "-m", "tests.bench.range_server", str(folder), str(latency_s), str(bytes_per_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Serve until terminated; print the port."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("latency_s", type=float)
    parser.add_argument("bytes_per_s", type=float)
    arguments = parser.parse_args()
    Handler.latency_s, Handler.bytes_per_s = arguments.latency_s, arguments.bytes_per_s
    server = QuietServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=arguments.folder))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
