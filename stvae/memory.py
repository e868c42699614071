"""Classify failures of the device: out of memory, or a GPU that this process can no longer use."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a computation failed only because memory ran out, on a GPU or on the CPU."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def is_device_fault(error: BaseException) -> bool:
    """Return True if the GPU failed in a way that this process cannot recover from, such as an illegal address."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def release_memory() -> None:
    """Free the GPU memory that torch still caches after a failed computation."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
