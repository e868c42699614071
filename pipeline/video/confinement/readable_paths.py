"""Files and folders that a decoding child may read: its program, its libraries, and a few facts of the machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
    *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
    *("/dev/null", "/dev/zero", "/dev/urandom"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)
"""System libraries, the time zone, and what libraries ask about processors and memory."""
PYTHON_FOLDERS = ("stdlib", "platstdlib", "purelib", "platlib")
"""Names in ``sysconfig`` of the folders with Python's own modules and installed packages."""


def readable_paths() -> list[str]:
    """Return what children of this process may read, without paths below other ones.

    A loaded package cannot add the home folder or one above it.
    """
    homes = _homes()
    loaded = {Path(path).resolve() for path in (*_module_paths(), *_mapped_files())}
    allowed = {path for path in loaded if not any(home.is_relative_to(path) for home in homes)}
    allowed |= {Path(path).resolve() for path in (*SYSTEM, *_python_folders())}
    allowed = {path for path in allowed if path.exists()}
    return sorted(str(path) for path in allowed if not allowed & set(path.parents))


def _homes() -> set[Path]:
    """The home folders of this user, which may hold keys."""
    homes = {os.environ.get("HOME")}
    with contextlib.suppress(KeyError):  # a container may run as a user without an entry
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return {Path(home).resolve() for home in homes if home}


def _python_folders() -> Iterator[str]:
    for name in PYTHON_FOLDERS:
        yield sysconfig.get_path(name)
    for prefix in (sys.prefix, sys.base_prefix):
        yield os.path.join(prefix, "lib")


def _module_paths() -> Iterator[str]:
    """Folders of the packages that are loaded, files of single modules, and archives with modules."""
    yield from filter(os.path.isfile, sys.path)
    for name, module in list(sys.modules.items()):
        if "." not in name:
            folders = getattr(module, "__path__", None)
            yield from folders or filter(None, [getattr(module, "__file__", None)])


def _mapped_files() -> Iterator[str]:
    """Shared libraries that are loaded, wherever they lie."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").split(maxsplit=5)[5:]
            if path and path[0].startswith("/"):
                yield path[0]
