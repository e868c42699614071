"""PyTorch's settings while a VAE computes: exact float32, repeatable sums, and everything restored afterwards."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from stvae import load_vae
from stvae.numerics import EXACT, OPERATORS, exact_numerics
from stvae.vae import VAE
from tests.support.golden import TINY

Settings = dict[str, Any]
GENERIC = ("generic", "all")


def set_newer(operator: tuple[str, str], precision: str) -> Callable[[], None]:
    return lambda: torch._C._set_fp32_precision_setter(*operator, precision)


CHANGES: dict[str, Callable[[], Any]] = {
    "defaults": lambda: None,
    "older products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "older convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer products": set_newer(("cuda", "matmul"), "tf32"),
    "newer convolutions": set_newer(("cuda", "conv"), "ieee"),
    "everything exact": set_newer(GENERIC, "ieee"),
    "everything fast": set_newer(GENERIC, "tf32"),
    "autotuning": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "accumulation": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    "reductions": lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", (False, False)),
}
"""Ways in which a program may have set PyTorch before it calls a VAE, with the older and the newer settings."""


def settings() -> Settings:
    """The settings as programs read them. PyTorch refuses to read an older one that a newer one contradicts."""
    found: Settings = {"/".join(key): torch._C._get_fp32_precision_getter(*key) for key in (*OPERATORS, GENERIC)}
    older = {
        "products": lambda: torch.backends.cuda.matmul.allow_tf32,
        "convolutions": lambda: torch.backends.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
    }
    for name, read in older.items():
        found[name] = "contradicted"
        with suppress(RuntimeError):
            found[name] = read()
    products = torch.backends.cuda.matmul
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        found[name] = getattr(products, name), getattr(products, f"{name}_split_k")
    found |= {"accumulation": products.allow_fp16_accumulation, "deterministic": torch.backends.cudnn.deterministic}
    return found | {"benchmark": torch.backends.cudnn.benchmark}


def assert_exact(found: Settings, *, autotune: bool = False) -> None:
    assert all(found["/".join(operator)] == EXACT for operator in OPERATORS)
    assert (found["products"], found["convolutions"], found["precision"]) == (False, False, "highest")
    assert not found["allow_bf16_reduced_precision_reduction"][0] and not found["accumulation"]
    assert not found["allow_fp16_reduced_precision_reduction"][0]
    assert found["deterministic"] and found["benchmark"] is autotune


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """PyTorch's own settings after each test."""
    yield
    reset()


def reset() -> None:
    set_newer(GENERIC, "none")()
    torch.set_float32_matmul_precision("highest")
    for operator in OPERATORS:
        set_newer(operator, "none")()
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.matmul.allow_fp16_accumulation = False


class Recorder(torch.nn.Module):
    """A model in place of a VAE's own. It notes the settings in each call, and may fail."""

    def __init__(self, vae: VAE, error: Exception | None = None) -> None:
        super().__init__()
        self.vae, self.inner, self.error = [vae], vae.model, error
        self.seen: list[Settings] = []

    def encode(self, *arguments: Any) -> Any:
        return self._call(self.inner.encode, *arguments)

    def decode(self, *arguments: Any) -> Any:
        return self._call(self.inner.decode, *arguments)

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self.seen.append(settings())
        if self.error:
            raise self.error
        return method(*arguments)


def recorded_vae(error: Exception | None = None, **options: Any) -> tuple[VAE, Recorder]:
    vae = load_vae(TINY, **options)
    recorder = Recorder(vae, error)
    vae.model = recorder  # type: ignore[assignment]
    return vae, recorder


PIXELS = torch.zeros(1, 3, 17, 32, 32, dtype=torch.uint8)


@pytest.mark.filterwarnings("error")
def test_whatever_a_program_has_set_is_exact_inside_and_as_it_was_afterwards() -> None:
    for first, second in itertools.product(CHANGES, CHANGES):
        reset()
        CHANGES[first]()
        CHANGES[second]()
        before = settings()
        with exact_numerics():
            assert_exact(settings())
        assert settings() == before, (first, second)


@pytest.mark.parametrize("autotune", [False, True])
def test_encode_and_decode_set_the_numerics_and_restore_them(autotune: bool) -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = not autotune
    before = settings()
    vae, recorder = recorded_vae(autotune=autotune)
    assert settings() == before, "loading changes nothing"
    moments = vae.encode(PIXELS)
    assert settings() == before
    vae.decode(moments.chunk(2, dim=1)[0], 17)
    assert settings() == before and len(recorder.seen) == 2
    for seen in recorder.seen:
        assert_exact(seen, autotune=autotune)


def test_an_error_restores_the_numerics_too() -> None:
    before = settings()
    vae, recorder = recorded_vae(error=torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        vae.encode(PIXELS)
    with pytest.raises(torch.OutOfMemoryError):
        vae.decode(torch.zeros(1, 4, 5, 4, 4), 17)
    assert len(recorder.seen) == 2 and settings() == before


def test_bfloat16_on_cpus_stays_float32_where_a_program_allows_less() -> None:
    """``medium`` lets oneDNN compute float32 products in bfloat16, on processors that have it."""
    vae = load_vae(TINY)
    exact = vae.encode(PIXELS)
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(vae.encode(PIXELS), exact)


def test_threads_share_the_numerics_and_the_last_one_restores_them() -> None:
    """Autotuning is on only while every thread inside allows it."""
    before = settings()
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with exact_numerics(autotune=True):
            assert_exact(settings(), autotune=True)
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=compute)
    thread.start()
    assert entered.wait(10)
    with exact_numerics():
        assert_exact(settings())
        with exact_numerics(autotune=True):
            assert_exact(settings())
    assert_exact(settings(), autotune=True)
    leave.set()
    thread.join()
    assert settings() == before
