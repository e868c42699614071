"""Classify failures of the device: out of memory, or a GPU that this process can no longer use."""

from __future__ import annotations

OUT_OF_MEMORY = (
    "DefaultCPUAllocator",  # torch on a CPU
    "CUDA error: out of memory",  # the driver, for pinned memory and for what libraries allocate on their own
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Words of errors whose type does not say that memory ran out."""
NO_ALGORITHM = "unable to find an engine to execute this computation"
"""Words of cuDNN if no algorithm fits the memory that is left, and also if it has none for the computation."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a computation failed only because memory ran out, on a GPU or on the CPU."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def may_be_out_of_memory(error: BaseException) -> bool:
    """Return True if the computation failed for lack of memory, or for a reason that looks the same.

    A smaller computation can tell: if it fails in the same way, memory is not the reason.
    """
    return is_out_of_memory(error) or NO_ALGORITHM in str(error)


def is_device_fault(error: BaseException) -> bool:
    """Return True if the GPU failed in a way that this process cannot recover from, such as an illegal address.

    Libraries report such failures with errors of any type, so the GPU is tried.
    """
    import torch

    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and not _gpu_works())


def _gpu_works() -> bool:
    """Return False if this process has used a GPU and cannot use it any more: every call then fails."""
    import torch

    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def release_memory() -> None:
    """Free the GPU memory that torch still caches after a failed computation."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
