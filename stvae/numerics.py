"""PyTorch's settings for exact and repeatable results, in force while a VAE computes and restored afterwards.

PyTorch keeps these settings once per process, and some of its defaults trade exactness for speed: convolutions of float32
tensors use TF32, which has 10 bits of mantissa, and cuDNN may choose algorithms whose sums come in any order.

``torch.use_deterministic_algorithms`` is not among them. It refuses operators that have no deterministic form, also where
a VAE uses them in an exact way, fills all new memory, and needs a variable that is set before CUDA starts. What it adds is
not needed here: one thread computes on one stream, where cuBLAS repeats its results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

EXACT = "ieee"
"""PyTorch's name for float32 that is computed as float32."""
CUBLAS, ONEDNN = ("cuda", "matmul"), ("mkldnn", "matmul")
CONVOLUTIONS, RECURRENT = ("cuda", "conv"), ("cuda", "rnn")
OPERATORS = (CUBLAS, CONVOLUTIONS, RECURRENT, ONEDNN, ("mkldnn", "conv"), ("mkldnn", "rnn"))
"""Backend and operator of each float32 setting, as PyTorch 2.9 and newer name them."""
PRODUCT_STATES = ((EXACT, EXACT), ("tf32", "tf32"), ("tf32", "bf16"))
"""Settings of cuBLAS and oneDNN that go with ``highest``, ``high`` and ``medium`` of the older setting for products."""

_lock = threading.Lock()
_calls_in_progress: list[bool] = []
"""For each call inside ``exact_numerics``, whether it allows autotuning."""
_restore: Callable[[], None] = lambda: None  # noqa: E731 (replaced by the first call, under the lock)


@contextmanager
def exact_numerics(*, autotune: bool = False) -> Iterator[None]:
    """Set PyTorch for exact and repeatable results inside the block.

    float32 products and convolutions are computed in float32, sums of half-precision products are kept in float32, and
    cuDNN uses deterministic algorithms. ``autotune`` lets cuDNN try its algorithms on each new shape and keep the fastest,
    so the last bits may differ between processes.

    Blocks may be nested, and threads may be inside at the same time: the first one saves the settings and the last one
    restores them. cuDNN autotunes only while every one of them allows it. Settings that other code changes meanwhile are
    lost. The float32 settings come back as explicit values, also where they were PyTorch's defaults.
    """
    global _restore
    with _lock:
        if not _calls_in_progress:
            _restore = _save_settings()
            _set_exact()
        _calls_in_progress.append(autotune)
        torch.backends.cudnn.benchmark = all(_calls_in_progress)
    try:
        yield
    finally:
        with _lock:
            _calls_in_progress.remove(autotune)
            if _calls_in_progress:
                torch.backends.cudnn.benchmark = all(_calls_in_progress)
            else:
                _restore()


def _set_exact() -> None:
    """Set everything but autotuning. The older float32 settings come first, because they overwrite the newer ones."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for operator in OPERATORS:
        torch._C._set_fp32_precision_setter(*operator, EXACT)
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False
    products.allow_fp16_accumulation = False
    torch.backends.cudnn.deterministic = True


def _save_settings() -> Callable[[], None]:
    """Read the settings that ``_set_exact`` changes. Returns a function that restores them."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    reductions = {name: (getattr(products, name), getattr(products, f"{name}_split_k")) for name in names}
    accumulation, deterministic = products.allow_fp16_accumulation, cudnn.deterministic
    benchmark = cudnn.benchmark
    precisions = {operator: torch._C._get_fp32_precision_getter(*operator) for operator in OPERATORS}
    older_products, older_convolutions = _read_older_products(), _read_older_convolutions()

    def restore() -> None:
        torch.set_float32_matmul_precision(older_products)
        cudnn.allow_tf32 = older_convolutions
        for operator, precision in precisions.items():
            torch._C._set_fp32_precision_setter(*operator, precision)
        for name, value in reductions.items():
            setattr(products, name, value)
        products.allow_fp16_accumulation, cudnn.deterministic = accumulation, deterministic
        cudnn.benchmark = benchmark

    return restore


def _read_older_products() -> str:
    """Read PyTorch's older setting for products. PyTorch refuses to read it while a newer setting contradicts it.

    Leaves newer settings changed, which the caller has saved.
    """
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    for cublas, onednn in PRODUCT_STATES:
        torch._C._set_fp32_precision_setter(*CUBLAS, cublas)
        torch._C._set_fp32_precision_setter(*ONEDNN, onednn)
        with suppress(RuntimeError):
            return torch.get_float32_matmul_precision()
    return "highest"


def _read_older_convolutions() -> bool:
    """Read PyTorch's older setting for convolutions, as ``_read_older_products`` does."""
    with suppress(RuntimeError):
        return bool(torch.backends.cudnn.allow_tf32)
    for operator in (CONVOLUTIONS, RECURRENT):
        torch._C._set_fp32_precision_setter(*operator, EXACT)
    with suppress(RuntimeError):
        return bool(torch.backends.cudnn.allow_tf32)
    return True
