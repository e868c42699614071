"""Decides which symbolic links of a local folder are followed."""

from __future__ import annotations

import os
from pathlib import Path


class LinkPolicy:
    """Follows links to files below a folder, and to the blobs of a Hugging Face cache that the folder belongs to.

    A cache keeps ``blobs/HASH`` beside ``snapshots/REVISION/NAME``, and each NAME is a link to a blob. Every other link
    might lead to a file that has nothing to do with the folder.
    """

    def __init__(self, folder: str) -> None:
        real = Path(os.path.realpath(folder))
        caches = [parent.parent for parent in (real, *real.parents) if parent.name == "snapshots"]
        self._folders = [real, *(cache / "blobs" for cache in caches if (cache / "blobs").is_dir())]
        self.outside = 0
        """Number of links passed over because they lead out of the folder."""

    def target(self, path: str) -> Path | None:
        """The file that a link leads to; None if the link is broken or leads somewhere else."""
        real = Path(os.path.realpath(path))
        return real if real.is_file() and any(map(real.is_relative_to, self._folders)) else None

    def follows(self, path: str, suffix: str) -> bool:
        """Return whether a listing takes the link at ``path``, and count it if it leads out of the folder.

        A link to a file with the same suffix below the folder is not taken: that file is listed where it lies. The
        same holds for a link to a folder.
        """
        target = self.target(path)
        if target is not None:
            return Path(target).suffix.lower() != suffix or not target.is_relative_to(self._folders[0])
        self.leads_out(path)
        return False

    def leads_out(self, path: str) -> bool:
        """Return whether a link, or a folder on the way to a file, leads out of the folder; counts it if it does."""
        outside = not any(map(Path(os.path.realpath(path)).is_relative_to, self._folders))
        self.outside += outside
        return outside
