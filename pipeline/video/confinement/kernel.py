"""Calls of the kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 3, 4, 38
"""Options of ``prctl``, from linux/prctl.h."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
"""Namespaces of users and of network devices, from linux/sched.h."""
CAPABILITY_VERSION = 0x20080522
"""Layout of ``capset``'s arguments, from linux/capability.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> int:
    """Return the result of a call into the C library. Raises OSError with the kernel's reason if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number: int, *arguments: object) -> int:
    """Make a system call by number. Raises OSError if it fails."""
    _libc.syscall.restype = ctypes.c_long
    return check(_libc.syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, *arguments: int) -> int:
    """Set or read an attribute of this process. The kernel wants zeros for the arguments that an option does not have."""
    values = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    return check(_libc.prctl(option, *values))


def is_dumpable() -> bool:
    """Return True if processes of the same user may read this one's memory and environment."""
    return prctl(PR_GET_DUMPABLE) == 1


def make_undumpable() -> None:
    """Close this process's memory, environment and descriptors to other processes of its user, and to core dumps."""
    prctl(PR_SET_DUMPABLE, 0)


def end_with_parent(parent: int) -> None:
    """Make the kernel kill this process when ``parent`` ends. A change of user or capabilities undoes it."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os._exit(0)


def leave_network() -> bool:
    """Enter a namespace without network. A plain user needs a user namespace for it. Returns True if it worked."""
    return any(_libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def drop_capabilities() -> None:
    """Give up every capability, also those in a user namespace of this process's own."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    check(_libc.capset(header, nothing))


def has_capabilities(*numbers: int) -> bool:
    """Return True if this process has all of these capabilities, numbered as in linux/capability.h."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return all(effective >> number & 1 for number in numbers)
