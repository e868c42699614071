"""Files on a local disk: durable writes, and messages for disks that are full or lack hard links."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

from pipeline.storage.failpoints import Failpoint, failpoint

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, quota or file that is full."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
"""Error numbers of ``link`` on file systems without hard links, such as FAT and many mounted object stores."""
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""Error numbers of ``fsync`` on file systems that sync no folders."""

UNSYNCED_FOLDERS = (
    "this file system does not sync folders to the disk: the last files may be gone after a power cut, and the same "
    "command then makes them again"
)


class NoHardLinks(OSError):
    """The file system cannot link a file to a second name."""


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing. NotADirectoryError if a file has the name of one."""
    while True:
        try:
            return path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            if os.path.lexists(error.filename) and not os.path.isdir(error.filename):
                raise NotADirectoryError(errno.ENOTDIR, f"a file has the name of the folder '{path.name}'") from error
            # another process has removed the folder since mkdir found it


def make_file(path: Path) -> None:
    """Make an empty file, and its folder if it is missing."""
    make_folder(path.parent)
    path.touch()


def link(file: Path, target: Path) -> None:
    """Give a file a second name, which must be free: FileExistsError if it is not. NoHardLinks says what to do."""
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise NoHardLinks(
            f"this file system has no hard links ({error.strerror}), which create a file only if it is absent; give "
            "--single-writer if no other job writes there"
        ) from error


def fsync_folder(path: Path) -> bool:
    """Wait until the names in a folder are on the disk. Returns False if the file system refuses to sync folders."""
    try:
        fsync(path)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return False
    return True


def link_new(content: bytes | Path, target: Path, scratch: Path, *, copied: bool, replace: bool) -> None:
    """Write a file to the disk and link it to its name. FileExistsError if there is one.

    scratch: where to write it before. ``copied``: link a copy of ``content``, since syncing that file failed: Linux takes
    the lost pages for written, and the next ``fsync`` succeeds. ``replace``: rename it, over a file that is there.
    """
    if isinstance(content, bytes):
        scratch.write_bytes(content)
        content = scratch
    elif copied or content.stat().st_dev != target.parent.stat().st_dev:
        shutil.copyfile(content, scratch)
        content = scratch
    fsync(content)
    failpoint(Failpoint.FILE_WRITTEN)
    if replace:
        content.replace(target)  # some file systems have no hard links
    else:
        link(content, target)
    failpoint(Failpoint.FILE_LINKED)


def scratch_name(random: str) -> str:
    """Name of a scratch file of this process. ``random`` makes it unique."""
    return f"{socket.gethostname()}-{os.getpid()}-{random}"


def is_left_by_dead_writer(name: str) -> bool:
    """Return whether this is the name of a scratch file of a process on this machine that no longer runs."""
    host, _, rest = name.rpartition("-")[0].rpartition("-")
    return (
        host == socket.gethostname()
        and rest.isdecimal()
        and Path("/proc/self").exists()  # macOS and Windows do not say here who runs
        and not Path(f"/proc/{rest}").exists()
    )


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
