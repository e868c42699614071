"""Stand-ins for packages that a trainer imports on the way to its dataset class, which does not use them."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class Anything:
    """A value with every attribute, which can be called, used as a decorator or as a base class."""

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __call__(self, *values: Any, **named: Any) -> Any:
        return values[0] if len(values) == 1 and callable(values[0]) and not named else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __or__(self, other: Any) -> Any:
        return object

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class StubFinder(MetaPathFinder, Loader):
    """Finds the named packages where they are not installed, and remembers which were imported."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self.used: set[str] = set()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in self._names:
            return None
        self.used.add(package)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: the module is empty."""


def install_stubs(names: Sequence[str]) -> StubFinder:
    """Make packages importable that are not installed."""
    finder = StubFinder(names)
    sys.meta_path.append(finder)
    return finder


def skip_init(root: Path, packages: Sequence[str]) -> None:
    """Make packages importable without running their ``__init__.py``."""
    for name in packages:
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[name] = module


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()
