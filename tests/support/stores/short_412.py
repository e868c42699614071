"""A proxy before an S3 server that answers 412 as VersityGW does: with AWS's code, but without ``<Condition>``."""

from __future__ import annotations

import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SHORT = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>PreconditionFailed</Code>'
    b"<Message>At least one of the pre-conditions you specified did not hold</Message></Error>"
)
OWN = ("content-length", "transfer-encoding", "connection", "date", "server")
"""Headers that the proxy sends itself."""


class Handler(BaseHTTPRequestHandler):
    """Passes requests on; replaces the body of every 412."""

    protocol_version = "HTTP/1.1"
    target = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content, length = response.read(), response.getheader("Content-Length")
        finally:
            connection.close()
        if response.status == 412 and self.command != "HEAD":
            content = SHORT
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def main() -> None:
    """Serve until terminated. Arguments: the port, and the address of the server behind."""
    Handler.target = sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
