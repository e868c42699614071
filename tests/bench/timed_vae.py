"""Jobs whose VAE takes a known time and that record their events: ``python -m tests.bench.timed_vae`` is the encode command.

Environment variables, which Ray's workers see too, give the time per clip and the file of events. The VAE sleeps, so that
CPUs stay free as they do beside a GPU. Without ``TIMED_ENCODE_S`` the job uses the real VAE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

ENCODE_S = "TIMED_ENCODE_S"
"""Seconds that a clip takes in the VAE."""
NOTES = "TIMED_NOTES"
"""File that gets a line per event: name, begin and end on the machine's monotonic clock."""


def note(name: str, begin_s: float, end_s: float) -> None:
    """Append an event with one write, since several processes share the file."""
    line = json.dumps([name, begin_s, end_s]) + "\n"
    fd = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``call`` to record an event each time it runs."""

    def run(*arguments: Any, **options: Any) -> Any:
        begin_s = time.monotonic()
        try:
            return call(*arguments, **options)
        finally:
            note(name, begin_s, time.monotonic())

    return run


class TimedVAE:
    """A VAE that sleeps ``TIMED_ENCODE_S`` per clip and returns zeros of the right shape."""

    can_tile = False

    def __init__(self, card: Any) -> None:
        self.card = card
        self.encode_s = float(os.environ[ENCODE_S])

    def upload(self, pixels: Any) -> Any:
        return pixels

    def encode(self, pixels_BCTHW: Any, **_: Any) -> Any:
        import torch

        begin_s = time.monotonic()
        time.sleep(self.encode_s * len(pixels_BCTHW))
        note("vae", begin_s, time.monotonic())
        size = self.card.geometry.latent_size(tuple(pixels_BCTHW.shape[2:]))
        return torch.zeros((len(pixels_BCTHW), 2 * self.card.latent_channels, *size))


@contextmanager
def timed_encoder() -> Iterator[None]:
    """Make encoders of this process use the timed VAE and record their start."""
    from pipeline.encode import encoder as encode_module
    from stvae import load_vae, read_card

    def load(path: str, **options: Any) -> Any:
        return TimedVAE(read_card(path)) if os.environ.get(ENCODE_S) else load_vae(path, **options)

    with (
        mock.patch.object(encode_module, "load_vae", noted("load VAE", load)),
        mock.patch.object(encode_module, "Decoders", noted("start decoders", encode_module.Decoders)),
    ):
        yield


def main() -> int:
    """Run ``jobs/encode_dataset.py``."""
    from jobs import encode_dataset
    from pipeline import run as run_module
    from pipeline.encode.encoder import ShardEncoder
    from pipeline.encode.settings import EncoderSettings
    from pipeline.executor import ray_cluster, ray_data

    def timed_encoder_maker(settings: EncoderSettings) -> ShardEncoder:
        with timed_encoder():
            encoder: ShardEncoder = noted("start encoder", ShardEncoder)(settings)
        encoder.encode_unit = noted("unit", encoder.encode_unit)  # type: ignore[method-assign]
        return encoder

    connect = noted("connect", ray_cluster.connect_to_ray)
    started_s = time.monotonic()
    note("imported", started_s, started_s)
    with (
        mock.patch.object(run_module, "ShardEncoder", timed_encoder_maker),
        mock.patch.object(ray_data, "connect_to_ray", connect),
        mock.patch.object(ray_cluster, "connect_to_ray", connect),
        mock.patch.object(run_module, "complete_index", noted("complete_index", run_module.complete_index)),
    ):
        code = encode_dataset.main()
    note("main", started_s, time.monotonic())
    return code


if __name__ == "__main__":
    sys.exit(main())
