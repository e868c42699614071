"""The choices of an export beside its target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

EACH = "each"
"""Value of ``caption`` that exports a sample once per caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """The options that change the exported files. An export keeps those that it was begun with."""

    caption: str = "caption"
    """Column that holds the caption of a sample, or ``each``: one exported sample per caption."""
    text: str | None = None
    """Name of the text layer whose embeddings are exported."""
    where: str | None = None
    """Filter of the samples, as the loader takes it."""
    uncaptioned: bool = False
    """True if samples without a caption are exported with the empty string; otherwise they are left out and counted."""
    version: str | None = None
    """Tag or version of the output that is exported, as the loader takes it; the newest one by default."""
    root: str | None = None
    """Folder under which the trainer will find the export, for formats whose indexes hold absolute paths."""

    def to_json(self) -> dict[str, Any]:
        """The options by name."""
        return dataclasses.asdict(self)
