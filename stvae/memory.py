"""Running out of memory, on GPUs and on CPUs, and losing a GPU altogether."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failed computation only lacked memory."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def is_device_fault(error: BaseException) -> bool:
    """Whether the GPU has failed in a way that this process cannot recover from, such as an illegal address."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def release_memory() -> None:
    """Give back what a failed computation left cached on the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
