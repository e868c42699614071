"""Builds the model of a configuration that may ask for ten million layers, in bounded time and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch.nn.modules import module as torch_modules

from stvae.checkpoints.files import WeightsError, describe

SPARE_TENSORS = 1000
"""Number of parameters that a model may have beyond twice the number of stored tensors."""
MODULES_PER_TENSOR = 20
MAX_BUILD_S = 120.0
"""Largest time for building a model without weights; the published ones take a second."""

T = TypeVar("T")


class _TooLarge(Exception):
    """Ends the constructor of a model with more parts than the weights have."""


def build_bounded(build: Callable[[], T], num_tensors: int, where: str) -> T:
    """Return the model that ``build`` makes. WeightsError if it cannot, or if the model is larger than its weights.

    ``num_tensors``: number of tensors that are stored. ``where``: the configuration, for messages.
    """
    limits = {"parameter": 2 * num_tensors + SPARE_TENSORS}
    limits["module"] = MODULES_PER_TENSOR * limits["parameter"]
    counts = dict.fromkeys(limits, 0)
    thread, end_s = threading.get_ident(), time.monotonic() + MAX_BUILD_S

    def count(kind: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if threading.get_ident() != thread:
                return
            counts[kind] += 1
            if counts[kind] > limits[kind] or time.monotonic() > end_s:
                raise _TooLarge

        return hook

    handles = [
        torch_modules.register_module_parameter_registration_hook(count("parameter")),
        torch_modules.register_module_module_registration_hook(count("module")),
    ]
    try:
        return build()
    except _TooLarge:
        raise WeightsError(
            f"{where} describes a model with more than {counts['parameter']} tensors and {counts['module']} layers, but "
            f"the weights have {num_tensors} tensors; give the config.json that belongs to them"
        ) from None
    except Exception as error:  # the constructors of diffusers raise anything for sizes that do not go together
        raise WeightsError(f"{where} cannot be built: {describe(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
