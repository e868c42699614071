"""Makes the clients of remote stores: one per process, class and settings, shared by all threads.

A client takes a tenth of a second to connect, keeps connections open and, on the Hub, remembers listings.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any

import fsspec

SETTINGS = (
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "GCSFS_",
    "STORAGE_EMULATOR_HOST",
    "HF_",
    "NO_PROXY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
)
"""Starts of the names of variables that a client reads when it is made, in upper case."""
LOGGERS = ("adlfs", "aiobotocore", "azure", "botocore", "gcsfs", "google", "huggingface_hub", "s3fs", "urllib3")
"""Loggers of clients. What they print of an error that is tried again, or raised, is in our own message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """The fsspec class for a scheme."""

    module: str
    name: str
    extra: str = ""
    """Extra of this package that installs the client; empty if it needs none."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    """Settings that the client takes from the environment, where the user has set none."""


_HTTP = Driver(module="pipeline.storage.drivers.http", name="WebFiles", extra="http")
_AZURE = Driver(module="pipeline.storage.drivers.azure", name="AzureFiles", extra="azure")
_AWS = {
    "AWS_MAX_ATTEMPTS": "3",  # of 5: more tries are the work of retry.py
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "5",  # of 1, and 1 s: many nodes that start at once are throttled
    "AWS_METADATA_SERVICE_TIMEOUT": "2",
}
DRIVERS = {
    "file": Driver(module="fsspec.implementations.local", name="LocalFileSystem", options={"auto_mkdir": False}),
    "http": _HTTP,
    "https": _HTTP,
    "s3": Driver(module="pipeline.storage.drivers.s3", name="S3Files", extra="s3", environment=_AWS),
    "az": _AZURE,
    "abfs": _AZURE,
    "gs": Driver(module="pipeline.storage.drivers.gcs", name="GoogleFiles", extra="gcs"),
    "hf": Driver(module="pipeline.storage.drivers.hub", name="HubFiles", extra="hf"),
}

_clients: dict[tuple[type, int, str, str], fsspec.AbstractFileSystem] = {}
_lock = threading.Lock()


def _forget_lock() -> None:
    """Make a new lock in a forked process, where no thread would release the old one."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def open_client(scheme: str, url: str, given: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. ImportError if its package is not installed.

    ``given``: arguments of the client. ``::`` in the URL is a part of a name. Raises what the client raises if its settings
    are incomplete.
    """
    driver = DRIVERS[scheme]
    cls = getattr(importlib.import_module(driver.module), driver.name)
    options = driver.options | cls._get_kwargs_from_urls(url) | given
    path = cls._strip_protocol(url)
    if scheme == "file":
        return cls(**options, skip_instance_cache=True), path
    for name, value in driver.environment.items():
        os.environ.setdefault(name, value)
    settings = sorted((name, value) for name, value in os.environ.items() if name.upper().startswith(SETTINGS))
    key = (cls, os.getpid(), repr(sorted(options.items())), repr(settings))  # a client does not survive a fork
    with _lock:
        if key not in _clients:
            _silence_loggers()
            _clients[key] = cls(**options, use_listings_cache=False, skip_instance_cache=True)
        return _clients[key], path


def _silence_loggers() -> None:
    """Print nothing of the clients' own, unless the user has set up logging, which still gets all of it."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it has a handler of its own
