"""An HTTP proxy for plain requests and for tunnels (CONNECT), which counts them and may lead every name to one server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class ConnectProxy:
    """Leads every connection to ``target``, whatever name the client asks for."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.asked: list[str] = []
        """First line of each connection."""
        self.listener = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """The proxy's address."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until the proxy is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return client.close()
            head += data
        line = head.partition(b"\r\n")[0].decode()
        self.asked.append(line)
        method, url, version = line.split(" ")
        server = socket.create_connection(self.target)
        if method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:  # the server gets one request per connection, with a path instead of the URL
            parts = urlsplit(url)
            path = f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}"
            lines = [line for line in head.split(b"\r\n")[1:] if not line.lower().startswith(b"host:")]
            first = f"{method} {path} {version}\r\nHost: {self.target[0]}\r\nConnection: close\r\n"
            server.sendall(first.encode() + b"\r\n".join(lines))
        threading.Thread(target=_copy, args=(client, server), daemon=True).start()
        _copy(server, client)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def connect_proxy(endpoint: str) -> Iterator[ConnectProxy]:
    """Run a proxy whose every connection leads to the server at ``endpoint``."""
    parts = urlsplit(endpoint)
    proxy = ConnectProxy((parts.hostname or "", parts.port or 80))
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join()
