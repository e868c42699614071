"""Landlock: a process gives up files, TCP and signals for good, without being root (Linux 5.13 and newer).

Written for the calls themselves, since the package of this name on PyPI is an alpha that knows no rights newer than 2023.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from pipeline.video.confinement.kernel import system_call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, which are the same on every architecture that has Landlock."""
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""Rights to files by the version that brought them: read, write, execute and create; link; truncate; device ioctl."""
NET_VERSION, NET_RIGHTS = 4, 0b11
"""TCP: bind and connect."""
SCOPE_VERSION, SCOPES = 6, 0b11
"""Abstract Unix sockets and signals to processes outside."""


def landlock_version() -> int:
    """The kernel's version of Landlock. Raises OSError if it has none or if it is off."""
    return system_call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION))


def make_ruleset(readable: Iterable[str]) -> int:
    """Descriptor of a ruleset that allows to read these files and folders, and nothing else that Landlock knows.

    Paths that do not exist are left out. Raises OSError if the kernel has no Landlock.
    """
    version = landlock_version()
    rights = sum(bits for since, bits in FILE_RIGHTS.items() if since <= version)
    values = [rights]
    if version >= NET_VERSION:
        values.append(NET_RIGHTS)
    if version >= SCOPE_VERSION:
        values.append(SCOPES)
    attributes = struct.pack(f"={len(values)}Q", *values)
    ruleset = system_call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path in readable:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            allow_reading(ruleset, fd)
        finally:
            os.close(fd)
    return ruleset


def allow_reading(ruleset: int, fd: int) -> None:
    """Allow to open the file in ``fd``, or everything in the folder, for reading."""
    rights = READ_FILE | (READ_DIR if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)
    rule = struct.pack("=Qi", rights, fd)
    system_call(
        ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(RULE_PATH_BENEATH), ctypes.c_char_p(rule), ctypes.c_uint32(0)
    )


def restrict(ruleset: int) -> None:
    """Put this process under a ruleset. Raises OSError unless the process may gain no new privileges."""
    system_call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
