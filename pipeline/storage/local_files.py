"""Files on a local disk: durable writes, and messages for a full disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, quota or file that is full."""


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def describe_full_disk(error: OSError, folder: Path) -> str:
    """The message for a full disk, with the space that is left."""
    while not folder.exists():
        folder = folder.parent
    return f"{error.strerror} ({shutil.disk_usage(folder).free} bytes are free); make room and run the command again"
