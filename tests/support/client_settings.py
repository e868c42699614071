"""Environment variables that point the clients of stores at a server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fsspec import AbstractFileSystem


@contextmanager
def client_settings(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the ``with`` block, where no client is one that was made with other values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _forget_clients()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _forget_clients()


def _forget_clients() -> None:
    """Make fsspec forget its clients, which it keeps by their arguments and gives to everyone, whatever the environment."""
    classes: list[type[AbstractFileSystem]] = [AbstractFileSystem]
    for cls in classes:
        cls.clear_instance_cache()
        classes += cls.__subclasses__()
