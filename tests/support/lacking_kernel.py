"""Run a command as on a kernel or in a container that lacks system calls: ``python -m ... CALL,CALL COMMAND ...``."""

from __future__ import annotations

import errno
import os
import platform
import struct
import sys

from pipeline.video.confinement import kernel
from pipeline.video.confinement.system_call_filter import ALLOW, EQUAL, ERRNO, LOAD, NUMBER_AT, RETURN, install

LACKING = {
    "landlock": (444, 444, errno.ENOSYS),
    "seccomp": (317, 277, errno.ENOSYS),
    "unshare": (272, 97, errno.EPERM),
}
"""Numbers on x86_64 and aarch64, and the error: a kernel before 5.13, one without filters, Docker's default profile."""


def lose(names: list[str]) -> None:
    """Take these calls from this process and all that it starts."""
    column = 0 if platform.machine() == "x86_64" else 1
    program = struct.pack("=HBBI", LOAD, 0, 0, NUMBER_AT)
    for name in names:
        program += struct.pack("=HBBI", EQUAL, 0, 1, LACKING[name][column])
        program += struct.pack("=HBBI", RETURN, 0, 0, ERRNO | LACKING[name][2])
    program += struct.pack("=HBBI", RETURN, 0, 0, ALLOW)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    install(program, platform.machine())


if __name__ == "__main__":
    lose(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
