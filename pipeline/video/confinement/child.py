"""A child gives up everything but its video: the measures in order, each as far as the kernel has it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.video.confinement import kernel, landlock
from pipeline.video.confinement.readable_paths import readable_paths
from pipeline.video.confinement.system_call_filter import UnknownMachine, filter_program, filter_system_calls

FIRST_USER = 1_900_000_000
"""First of the numbers that become users of children. Linux gives none of them to people, services or containers."""
CAP_KILL, CAP_SETGID, CAP_SETUID = 5, 6, 7
"""From linux/capability.h: what it takes to change the user of a child, and to end that child."""
MAX_COPY_BYTES = 32 << 20
"""Largest video that a decoder which opens paths gets as a copy in memory. Copying 32 MB takes as long as a child."""


@dataclass(kw_only=True, slots=True)
class Policy:
    """The part of the measures that the server prepares once for all of its children."""

    reopens_video: bool
    """True if the decoder opens its video by path, as decord does. The child must keep the right to do so."""
    changes_user: bool
    """True if a child becomes another user."""
    paths: list[str] = field(default_factory=list)
    """Files and folders that children may read."""
    ruleset: int | None = None
    """Descriptor of the Landlock rules for them; None if the kernel has no Landlock."""
    refused: dict[str, str] = field(default_factory=dict)
    """Measures that cannot be taken on this machine, with reasons."""


@dataclass(kw_only=True, slots=True)
class Measures:
    """Measures that a child has taken, and those that it could not take, with reasons."""

    taken: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, measure: Callable[[], str | bool | None]) -> None:
        """Take one measure. It returns a detail, or False if the kernel refuses it; or it raises OSError."""
        try:
            detail = measure()
        except OSError as error:
            self.refused[name] = (error.strerror or str(error)).lower()
            return
        if detail is False:
            self.refused[name] = "operation not permitted"
        else:
            self.taken[name] = detail if isinstance(detail, str) else ""


def prepare(reopens_video: bool) -> Policy:
    """Decide what children of this process get. Call it when everything that they need is loaded."""
    policy = Policy(reopens_video=reopens_video, changes_user=False, paths=readable_paths())
    with contextlib.suppress(UnknownMachine):
        filter_program(os.getpid(), platform.machine())  # its fixed part is kept for the children
    try:
        policy.ruleset = landlock.make_ruleset(policy.paths)
    except OSError as error:
        policy.refused["landlock"] = (error.strerror or str(error)).lower()
    if os.geteuid() != 0:
        policy.refused["user"] = "only root can"
    elif not kernel.has_capabilities(CAP_KILL, CAP_SETGID, CAP_SETUID):
        policy.refused["user"] = "root lacks the capabilities"
    else:
        policy.changes_user = True
    return policy


def confine(policy: Policy, parent: int, video: int | None, keep: tuple[int, ...]) -> tuple[Measures, bool]:
    """Take all measures in a child that has one thread. Descriptors other than ``keep`` are closed.

    Returns the measures, and True if the child can take videos after this one. It cannot if its decoder opens the video
    by path, since the right to do so is given for one file. See ``is_opened_by_path``.
    """
    measures = Measures(refused=dict(policy.refused))
    measures.take("network", kernel.leave_network)
    reopened = video if policy.reopens_video and video is not None and is_opened_by_path(video) else None
    ruleset = policy.ruleset
    if ruleset is not None and reopened is not None:
        ruleset = landlock.make_ruleset(policy.paths)
        landlock.allow_reading(ruleset, reopened)
    _close_descriptors({fd for fd in (*keep, video, ruleset) if fd is not None})
    user = FIRST_USER + os.getpid()
    if policy.changes_user and (reopened is None or _can_reopen(reopened, user)):
        measures.take("user", lambda: _become(user))
    measures.take("capabilities", kernel.drop_capabilities)
    measures.take("undumpable", kernel.make_undumpable)
    kernel.end_with_parent(parent)  # again, because other credentials undo it
    measures.take("privileges", _refuse_privileges)
    if ruleset is not None:
        measures.take("landlock", lambda: _restrict(ruleset))
    measures.take("filter", _filter)
    return measures, reopened is None


def is_opened_by_path(video: int) -> bool:
    """Return True if a decoder that opens paths opens the video's own, for which its child needs a right of its own.

    Memory files need none. Small files are copied into one by ``in_memory``, which takes less time than another child.
    """
    return not _is_memory_file(video) and os.fstat(video).st_size > MAX_COPY_BYTES


def in_memory(video: int) -> int:
    """Descriptor of a memory file with the content of a video that ``is_opened_by_path`` says no to. Close it after use."""
    if _is_memory_file(video):
        return os.dup(video)
    copy = os.memfd_create("video")
    size_bytes = os.fstat(video).st_size
    position = 0
    while position < size_bytes and (count := os.sendfile(copy, video, position, size_bytes - position)):
        position += count
    return copy


def _is_memory_file(fd: int) -> bool:
    """Return True for a file that every user may open again, and that no Landlock rule is needed for."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")


def _close_descriptors(keep: set[int]) -> None:
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the one that lists the folder is closed already
                os.close(fd)


@contextlib.contextmanager
def _acting_as(user: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _can_reopen(fd: int, user: int) -> bool:
    """Return True if this user may open the file in ``fd`` by its path in /proc."""
    try:
        with _acting_as(user):
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
    except OSError:
        return False
    return True


def _become(user: int) -> str:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    return ""


def _refuse_privileges() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _restrict(ruleset: int) -> str:
    version = landlock.landlock_version()
    landlock.restrict(ruleset)
    os.close(ruleset)
    return str(version)


def _filter() -> str:
    filter_system_calls()
    return f"for {platform.machine()}"
