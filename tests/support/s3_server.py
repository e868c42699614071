"""A real S3 server in this process (moto's), which enforces If-None-Match."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen


@contextmanager
def s3_bucket(name: str = "bucket") -> Iterator[str]:
    """Start the server, create a bucket and point every client at it through the environment; yields the bucket's URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}",  # noqa: S104
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        # moto keeps its state in the process when a server stops
        urlopen(Request(settings["AWS_ENDPOINT_URL"] + "/moto-api/reset", method="POST")).close()  # noqa: S310
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        server.stop()
