"""A web server on this machine that is as slow as an object store: files by range, after a pause, at a rate."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK_BYTES = 1 << 20


class Handler(SimpleHTTPRequestHandler):
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
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)) if wanted else (0, size - 1)
        time.sleep(self.latency_s)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            left = last + 1 - first
            while left:
                block = file.read(min(left, BLOCK_BYTES))
                self.wfile.write(block)
                time.sleep(len(block) / self.bytes_per_s)
                left -= len(block)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Readers that hang up are no news."""


@contextmanager
def range_server(folder: Path, latency_s: float, bytes_per_s: float) -> Iterator[str]:
    """Its URL. In a process of its own, so that readers keep their interpreter to themselves."""
    command = [sys.executable, "-m", "tests.bench.range_server", str(folder), str(latency_s), str(bytes_per_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("latency_s", type=float)
    parser.add_argument("bytes_per_s", type=float)
    arguments = parser.parse_args()
    Handler.latency_s, Handler.bytes_per_s = arguments.latency_s, arguments.bytes_per_s
    server = Server(("127.0.0.1", 0), lambda *a: Handler(*a, directory=arguments.folder))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
