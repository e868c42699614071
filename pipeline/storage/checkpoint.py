"""Checkpoints behind URLs, read through the same door as sources: known schemes, retries, and errors without secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.errors import describe_error, is_missing, remote_errors
from pipeline.storage.retry import retried
from pipeline.storage.urls import canonical, open_filesystem
from stvae.checkpoints.download import Find, copy_checkpoint, find_text_encoder_files, find_vae_files


def local_checkpoint(vae: str) -> str:
    """The local copy of a VAE's folder or file if it is given by URL; otherwise the name or path as it is.

    ConfigError if there is no checkpoint, StoreError if the store does not answer.
    """
    if "://" not in vae:
        return vae
    copy = _copy(vae, "VAE", find_vae_files)
    if copy.is_dir() and not any((copy / path).exists() for path in ("config.json", "vae/config.json")):
        raise ConfigError(
            f"no VAE at '{canonical(vae)}': expected a folder with config.json and *.safetensors, or a file with weights"
        )
    return str(copy)


def local_text_encoder(encoder: str) -> str:
    """The local copy of a text encoder's or connector's folder if it is given by URL; otherwise the path as it is.

    ConfigError if there is nothing, StoreError if the store does not answer.
    """
    return str(_copy(encoder, "text encoder", find_text_encoder_files)) if "://" in encoder else encoder


def _copy(url: str, model: str, find: Find) -> Path:
    """The local copy of a folder or file behind a URL. ``model``: what it holds, for messages."""
    name = canonical(url)
    fs, root = open_filesystem(url)

    def request(call: Callable[[], Any]) -> Any:
        try:
            return retried(call)
        except remote_errors() as error:
            if is_missing(error):
                raise ConfigError(f"there is no {model} at '{name}'") from None
            raise StoreError(f"the {model} at '{name}' could not be read: {describe_error(error)}") from None

    return copy_checkpoint(name, fs, root, request, find)


def shown_vae(vae: str) -> str:
    """The name, path or URL of a VAE for messages, without secrets."""
    return canonical(vae) if "://" in vae else vae
