"""Checkpoints behind URLs, read through the same door as sources: known schemes, retries, and errors without secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.errors import describe_error, is_missing, remote_errors
from pipeline.storage.retry import retried
from pipeline.storage.urls import canonical, open_filesystem
from stvae.checkpoints.download import copy_folder


def local_checkpoint(vae: str) -> str:
    """The local copy of a VAE's folder if it is given by URL; otherwise the name or path as it is.

    ConfigError if there is no checkpoint, StoreError if the store does not answer.
    """
    if "://" not in vae:
        return vae
    name = canonical(vae)
    fs, root = open_filesystem(vae)

    def request(call: Callable[[], Any]) -> Any:
        try:
            return retried(call)
        except remote_errors() as error:
            if is_missing(error):
                raise ConfigError(f"there is no VAE at '{name}'") from None
            raise StoreError(f"the VAE at '{name}' could not be read: {describe_error(error)}") from None

    folder = copy_folder(name, fs, root, request)
    if not any((folder / path).exists() for path in ("config.json", "vae/config.json")):
        raise ConfigError(f"no VAE at '{name}': expected a folder with config.json and *.safetensors")
    return str(folder)


def shown_vae(vae: str) -> str:
    """The name, path or URL of a VAE for messages, without secrets."""
    return canonical(vae) if "://" in vae else vae
