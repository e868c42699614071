"""The system-call filter: a small program for the kernel (seccomp), made for one process.

Without privileges it takes sockets, other processes, programs and writable files from a decoder, and the parts of the
kernel that no decoder needs. Written by hand, since the bindings on PyPI need libseccomp from the system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from functools import cache

from pipeline.video.confinement.kernel import PR_SET_PDEATHSIG, system_call
from pipeline.video.confinement.system_calls import ABSENT, DENIED, FIRST_UNKNOWN, JUDGED, MACHINES, SECCOMP

SET_MODE_FILTER, FLAG_SPEC_ALLOW = 1, 4
"""From linux/seccomp.h. Without the flag, kernels before 5.16 slow the process down against attacks on itself."""
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of classic BPF, from linux/bpf_common.h: load a word, compare and jump, return."""
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data."""
X32_BIT = 0x40000000
"""Marks calls of x86_64's second table, which decoders never use."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD = 0x00010000
TERMINAL_REQUESTS = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX type into a terminal; FIOSETOWN and SIOCSPGRP send signals."""
SIGNAL_COMMANDS = (fcntl.F_SETOWN, 15)
"""F_SETOWN and F_SETOWN_EX send signals when a descriptor is ready."""


class UnknownMachine(OSError):
    """The filter has no table for this architecture."""


class _Program:
    """Instructions of one filter. Every block ends with a return or falls through to the next one."""

    def __init__(self) -> None:
        self.code = b""

    def add(self, instruction: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self.code += struct.pack("=HBBI", instruction, if_true, if_false, value)

    def answer(self, number: int) -> None:
        """Return an error to the process."""
        self.add(RETURN, ERRNO | number)

    def load_argument(self, position: int) -> None:
        """Load the lower half of an argument, which is all that the kernel reads of an int."""
        self.add(LOAD, ARGUMENTS_AT + 8 * position)

    def judge(
        self, call: int, instruction: int, argument: int, values: tuple[int, ...], error: int, allows: bool
    ) -> None:
        """Decide about a call by one of its arguments.

        If the comparison holds for one of the values, the call is allowed or answered with the error, as ``allows`` says;
        otherwise the reverse.
        """
        self.add(EQUAL, call, 0, 3 + len(values))
        self.load_argument(argument)
        for position, value in enumerate(values):
            self.add(instruction, value, len(values) - position, 0)
        self.add(RETURN, ERRNO | error if allows else ALLOW)
        self.add(RETURN, ALLOW if allows else ERRNO | error)


def filter_program(pid: int, machine: str) -> bytes:
    """The filter for a process: instructions of struct sock_filter. Raises UnknownMachine for other architectures."""
    if machine not in MACHINES:
        raise UnknownMachine(errno.ENOSYS, f"no table of system calls for {machine}")
    column, _ = MACHINES[machine]
    program = _Program()
    _judge(program, {name: numbers[column] for name, numbers in JUDGED.items()}, pid)
    return _fixed_part(machine) + program.code + struct.pack("=HBBI", RETURN, 0, 0, ALLOW)


@cache
def _fixed_part(machine: str) -> bytes:
    """The part of the filter that is the same for all processes."""
    column, machine_id = MACHINES[machine]
    program = _Program()
    program.add(LOAD, MACHINE_AT)
    program.add(EQUAL, machine_id, 1, 0)
    program.answer(errno.EPERM)
    program.add(LOAD, NUMBER_AT)
    program.add(AT_LEAST, X32_BIT, 0, 1)
    program.answer(errno.EPERM)
    program.add(AT_LEAST, FIRST_UNKNOWN, 0, 1)
    program.answer(errno.ENOSYS)
    for calls, error in ((ABSENT, errno.ENOSYS), (DENIED, errno.EPERM)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                program.add(EQUAL, number, 0, 1)
                program.answer(error)
    return program.code


def _judge(program: _Program, calls: dict[str, int | None], pid: int) -> None:
    """Add the rules for calls that depend on their arguments."""
    for name, instruction, argument, values, error, allows in (
        ("open", ANY_BIT, 1, (WRITING,), errno.EACCES, False),
        ("openat", ANY_BIT, 2, (WRITING,), errno.EACCES, False),
        ("ioctl", EQUAL, 1, TERMINAL_REQUESTS, errno.EPERM, False),
        ("fcntl", EQUAL, 1, SIGNAL_COMMANDS, errno.EPERM, False),
        ("prctl", EQUAL, 0, (PR_SET_PDEATHSIG,), errno.EPERM, False),
        ("clone", ANY_BIT, 0, (CLONE_THREAD,), errno.EPERM, True),
        ("kill", EQUAL, 0, (pid,), errno.EPERM, True),
        ("tgkill", EQUAL, 0, (pid,), errno.EPERM, True),
        ("prlimit64", EQUAL, 0, (0, pid), errno.EPERM, True),
    ):
        if (call := calls[name]) is not None:
            program.judge(call, instruction, argument, values, error, allows)


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def filter_system_calls() -> None:
    """Put this process, which must have one thread, under the filter. Raises OSError if the kernel does not take it."""
    machine = platform.machine()
    install(filter_program(os.getpid(), machine), machine)


def install(program: bytes, machine: str) -> None:
    """Install a filter. Kernels before 4.17 do not know the flag."""
    number = SECCOMP[MACHINES[machine][0]]
    argument = _Filter(len(program) // 8, program)
    for flags in (FLAG_SPEC_ALLOW, 0):
        try:
            system_call(number, ctypes.c_uint32(SET_MODE_FILTER), ctypes.c_uint32(flags), ctypes.byref(argument))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or not flags:
                raise
