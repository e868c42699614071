"""Commands that run as another user, who can read this Python environment also where it lies in root's home."""

from __future__ import annotations

import sys
from pathlib import Path

NOBODY = 65534
ROOT_HOME = Path("/root")


def in_readable_environment(command: list[str]) -> list[str]:
    """The command in a mount namespace where every user can read the folder of /root that has Python."""
    base = Path(sys.base_prefix)
    if not base.is_relative_to(ROOT_HOME) or ROOT_HOME.stat().st_mode & 0o001:
        return command
    top = ROOT_HOME / base.relative_to(ROOT_HOME).parts[0]
    script = (
        'kept=$(mktemp -d) && mount --bind "$0" "$kept" && mount -t tmpfs -o mode=755 none /root && mkdir "$0" '
        '&& mount --bind "$kept" "$0" && umount "$kept" && rmdir "$kept" && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(top), *command]


def as_nobody(command: list[str]) -> list[str]:
    """The command as a user without rights."""
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
