"""Jobs whose VAE takes a known time, and that note when what happened: ``python -m tests.bench.timed_vae`` is the
encode command line with them. What to take and where to note stand in the environment, where Ray's workers see them.

A VAE that sleeps stands for a GPU: the CPUs stay free meanwhile. With ``TIMED_ENCODE_S`` unset the VAE is the real
one.
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
    """One line, whole, whoever else writes."""
    line = json.dumps([name, begin_s, end_s]) + "\n"
    fd = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, with a note of each time it runs."""

    def run(*arguments: Any, **options: Any) -> Any:
        begin_s = time.monotonic()
        try:
            return call(*arguments, **options)
        finally:
            note(name, begin_s, time.monotonic())

    return run


class TimedVAE:
    """Zeros of the right shape after ``TIMED_ENCODE_S`` per clip."""

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
    """Encoders of this process take the timed VAE, and note how long they took to start."""
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
    """The command line of ``jobs/encode_dataset.py``."""
    from jobs import encode_dataset
    from pipeline import run as run_module
    from pipeline.encode.settings import EncoderSettings
    from pipeline.executor import local, ray_cluster, ray_data
    from pipeline.executor.ray_actor import EncoderActor

    class TimedActor(EncoderActor):
        def __init__(self, settings: EncoderSettings) -> None:
            with timed_encoder():
                noted("start encoder", super().__init__)(settings)
            self.encoder.encode_unit = noted("unit", self.encoder.encode_unit)  # type: ignore[method-assign]

    def local_encoder(settings: EncoderSettings) -> Any:
        with timed_encoder():
            encoder = noted("start encoder", ShardEncoder)(settings)
        encoder.encode_unit = noted("unit", encoder.encode_unit)
        return encoder

    ShardEncoder = local.ShardEncoder
    connect = noted("connect", ray_cluster.connect_to_ray)
    started_s = time.monotonic()
    note("imported", started_s, started_s)
    with (
        mock.patch.object(local, "ShardEncoder", local_encoder),
        mock.patch.multiple(ray_data, EncoderActor=TimedActor, connect_to_ray=connect),
        mock.patch.object(ray_cluster, "connect_to_ray", connect),
        mock.patch.object(run_module, "_finish", noted("_finish", run_module._finish)),
    ):
        code = encode_dataset.main()
    note("main", started_s, time.monotonic())
    return code


if __name__ == "__main__":
    sys.exit(main())
