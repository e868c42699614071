"""A real S3 server in this process (moto's), which enforces If-None-Match."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

from tests.support.client_settings import client_settings


@contextmanager
def s3_bucket(name: str = "bucket") -> Iterator[str]:
    """Start the server, create a bucket and point every client at it through the environment; yields the bucket's URL."""
    import boto3
    from moto.moto_server.threaded_moto_server import MotoRequestHandler
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with client_settings(settings):
            # moto keeps its state in the process when a server stops
            urlopen(Request(settings["AWS_ENDPOINT_URL"] + "/moto-api/reset", method="POST")).close()  # noqa: S310
            boto3.Session().client("s3").create_bucket(Bucket=name)
            yield f"s3://{name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
