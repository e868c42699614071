"""Classes of failures, and what a failed call leaves behind. Messages are those of PyTorch and the libraries below it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stvae import load_vae
from stvae.memory import is_device_fault, is_out_of_memory, may_be_out_of_memory
from tests.support import tiny_vaes

NO_ALGORITHM = RuntimeError("GET was unable to find an engine to execute this computation")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_lack_of_memory_is_never_taken_for_a_broken_gpu(error: BaseException) -> None:
    assert is_out_of_memory(error) and may_be_out_of_memory(error) and not is_device_fault(error)


def test_cudnn_without_an_algorithm_may_lack_memory() -> None:
    assert may_be_out_of_memory(NO_ALGORITHM) and not is_out_of_memory(NO_ALGORITHM)
    assert not may_be_out_of_memory(RuntimeError("a kernel is missing"))


@pytest.mark.parametrize(
    "message", ["cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "Triton Error [CUDA]: an illegal address"]
)
def test_any_error_is_a_device_fault_if_the_gpu_does_not_work_afterwards(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    error = RuntimeError(message)
    assert not is_device_fault(error), "no GPU is in use"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not is_device_fault(error), "the GPU works"
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert is_device_fault(error) and not is_device_fault(torch.OutOfMemoryError("none left"))


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLQwenImage"])
def test_a_failed_call_leaves_no_frames_in_the_model(name: str, tmp_path: Path) -> None:
    vae = load_vae(tiny_vaes.save(name, tmp_path), only="encoder")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    convolutions = [module for module in vae.model.model.encoder.modules() if isinstance(module, torch.nn.Conv3d)]
    handle = convolutions[-1].register_forward_pre_hook(fail)
    pixels = torch.zeros((1, 3, 5, 16, 16), dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        vae.encode(pixels)
    assert not [kept for kept in vae.model.model._enc_feat_map if isinstance(kept, torch.Tensor)]
    handle.remove()
    assert vae.encode(pixels).isfinite().all()
