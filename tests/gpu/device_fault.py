"""Section ``device-fault``: after a fault of the device, the encoder's process ends, and a new one computes again.

A child encodes a clip with a VAE whose first convolution is preceded by a read beyond the end of a tensor, which the GPU's
own check ends. No call of that process can use the GPU afterwards. The child is the product's actor, without Ray. On a CPU
the same error is raised by hand.
"""

from __future__ import annotations

import signal
from typing import Any
from unittest import mock

import torch

from pipeline.encode.counters import EncoderCounters
from pipeline.encode.micro_batches import MicroBatchEncoder
from pipeline.encode.utilization import Utilization
from pipeline.executor import ray_actor
from pipeline.executor.tasks import Task, pack
from pipeline.sources.units import Unit
from tests.gpu import tiny
from tests.gpu.full_size import SMALL, build
from tests.gpu.memory_ladder import decoded_clips, recipe_of
from tests.gpu.processes import call_in_new_process
from tests.gpu.report import Report

MODEL = SMALL["Wan 2.1"]


def run(report: Report) -> None:
    """Add a row for the end of the process in which the device fails, and one for a new process."""
    origin = "a failed assertion on the GPU" if report.on_gpu else "an error raised by hand"
    ended = call_in_new_process(report.device, encode_in_actor, report.device)
    killed = ended.exit_code == -signal.SIGKILL
    shown = "SIGKILL" if killed else f"exit code {ended.exit_code} {ended.value} {ended.error}"
    report.check(f"{origin} ends the encoder's process", killed, shown)
    afterwards = call_in_new_process(report.device, encode_soundly, report.device)
    shown = str(afterwards.value or afterwards.error)
    report.check("a new process encodes afterwards", afterwards.value == "finite moments", shown)


def encode_in_actor(device: str) -> str:
    """Let the device fail in the actor that the product gives to Ray. Returns only if the process lives on."""

    class Encoder:
        counters = EncoderCounters("encoder")

        def encode_unit(self, unit: Unit, ignored_attempts: list[str]) -> None:
            encode_soundly(device, faulty=True)

    class Maker:
        job = "job"

        def make(self) -> Any:
            return Encoder()

    task = Task(Unit(name="u", source="s", format="tar", generation=0, start=0, stop=None))
    with (
        mock.patch.object(ray_actor, "Metrics"),
        mock.patch.object(ray_actor, "EVERY_S", 1e6),  # no heartbeat, which would need Ray
    ):
        list(ray_actor.EncoderActor(Maker())({"tasks": [pack([task])]}))
    return "went on"


def encode_soundly(device: str, faulty: bool = False) -> str:
    """Encode a micro-batch with the product's encoder. ``faulty``: the device fails on the way."""
    vae, _ = build(MODEL, device, "float32")
    if faulty:
        convolution = next(module for module in vae.model.modules() if isinstance(module, torch.nn.Conv3d))
        convolution.register_forward_pre_hook(lambda *_: _fail(device))
    encoder = MicroBatchEncoder(vae, recipe_of(MODEL))
    with Utilization().unit() as activities:
        pixels = tiny.random_clips(MODEL.size, MODEL.micro_batch)
        (encoded,) = encoder.submit(decoded_clips(pixels), activities).result().values()
    assert encoded is not None
    return (
        "finite moments" if torch.from_numpy(encoded.members["latent"]).isfinite().all() else "moments are not finite"
    )


def _fail(device: str) -> None:
    if device == "cpu":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    few = torch.zeros(4, device=device)
    few[torch.full((1,), 1 << 30, device=device)] += 1  # no check on the host
