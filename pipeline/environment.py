"""This machine: versions, device model, processors."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.recipe import Run

PACKAGES = ("torch", "diffusers", "av", "decord", "numpy", "pyarrow")


def describe_environment(run: Run, device: str) -> dict[str, str]:
    """What may change the last bits of a latent beside the recipe: versions, device model, threads."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions | {"python": platform.python_version(), "device": device, "threads": str(run.cpus)}


def cpu_model() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0] if names else platform.machine()}"


def gpu_model() -> str:
    """The name of this process's GPU."""
    import torch

    return f"cuda {torch.cuda.get_device_name()}"
