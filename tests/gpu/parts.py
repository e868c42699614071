"""The sections in order. Each has parts, which run in processes of their own with budgets of their own.

Imports no torch, so that a machine without it gets a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

MODELS = ("Open-Sora 1.2", "Wan 2.1", "LTX-Video", "HunyuanVideo 1.5")
"""Names of the models in ``full_size.py``."""
VAES = ("torch", "diffusers", "safetensors", "einops", "numpy")
STORES = ("pyarrow", "fsspec", "google_crc32c", "tenacity", "filelock")
PACKAGE_OF = {"google_crc32c": "google-crc32c", "PIL": "pillow", "yaml": "PyYAML"}
"""Names of packages that differ from what is imported."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a section that runs in one process."""

    section: str
    module: str
    """Module of ``tests.gpu`` whose ``run(report, *arguments)`` is called."""
    arguments: tuple[Any, ...] = ()
    budget_s: float | None = None
    """Seconds until it is cut short. None takes an equal share of the time that is left for the whole command."""
    imports: tuple[str, ...]
    """Modules that it needs beside those of the standard library and of the repository."""

    def missing(self) -> list[str]:
        """Names of the packages that are not installed."""
        return [PACKAGE_OF.get(name, name) for name in self.imports if find_spec(name) is None]


MACHINE = Part(section="machine", module="machine", budget_s=60, imports=("torch", "numpy"))
"""Runs first, whatever sections are chosen."""
PARTS = [
    Part(section="exactness", module="exactness", budget_s=60, imports=VAES),
    Part(section="same-bytes", module="same_bytes", budget_s=60, imports=VAES),
    Part(section="memory", module="memory_ladder", budget_s=20, imports=(*VAES, "fsspec")),
    Part(section="device-fault", module="device_fault", budget_s=30, imports=(*VAES, *STORES, "yarl")),
    Part(
        section="job",
        module="whole_job",
        budget_s=60,
        imports=(*VAES, *STORES, "yarl", "av", "braceexpand", "jinja2", "PIL", "yaml", "aiohttp"),
    ),
    Part(section="loader", module="loader_copies", budget_s=30, imports=(*VAES, *STORES)),
    # last, since compiling takes the time that is left
    *(Part(section="throughput", module="throughput", arguments=(name,), imports=VAES) for name in MODELS),
]
"""All parts in the order in which they run."""
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))
