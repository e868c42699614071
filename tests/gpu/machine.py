"""Rows about the machine, which every table begins with. Fails if the device or torch cannot be used."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from pipeline.environment import cpu_model, gpu_model
from pipeline.setting import available_cpus
from tests.gpu.report import Report
from tests.support.paths import ROOT

OLDEST_TORCH = (2, 11)
PACKAGES = ("torch", "diffusers", "numpy", "av", "pyarrow", "triton")


def run(report: Report) -> None:
    """Add rows for the device, the versions and the commit."""
    if report.on_gpu:
        if not torch.cuda.is_available():
            shown = f"PyTorch {torch.__version__} finds no GPU that it can use; --device cpu tries the command itself"
            report.check("GPU", False, shown)
            return
        name, facts = gpu_model(), torch.cuda.get_device_properties(0)
        libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, driver {_driver()}"
        report.measured("GPU", f"{name.removeprefix('cuda ')}, {facts.total_memory / 2**30:.0f} GiB, {libraries}")
    report.measured("CPU", f"{cpu_model().removeprefix('cpu ')}, {available_cpus()} of them for this process")
    versions = {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    report.measured("versions", ", ".join(f"{name} {text}" for name, text in versions.items() if text))
    report.measured("commit", _output("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown")
    numbers = torch.__version__.split("+")[0].split(".")
    if tuple(int(number) for number in numbers[:2]) < OLDEST_TORCH:
        report.check("torch", False, f"got {torch.__version__}, expected {'.'.join(map(str, OLDEST_TORCH))} or newer")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or "unknown"


def _output(*command: str) -> str:
    """What a program prints; empty if there is no such program, or if it fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
