"""The scenes of the drill in ``crash.py``, by the flag that chooses them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedScene:
    """A scene that is imported when it is needed, since its module imports ``crash.py``."""

    place: str
    """Module in this folder, and class."""
    text: str
    """Help of the flag."""

    def scene_class(self) -> Any:
        """The class."""
        module, class_name = self.place.split(".")
        return getattr(importlib.import_module(f"tests.end_to_end.{module}"), class_name)


SCENES = {
    "--text": NamedScene(place="crash_text.TextScene", text="text jobs, which write a layer"),
    "--grown-text": NamedScene(place="crash_text.GrownTextScene", text="text jobs for an output that has grown"),
    "--edits": NamedScene(place="crash_edits.EditScene", text="commands that remove, take back and tag"),
    "--edited": NamedScene(place="crash_edits.EditedJobScene", text="jobs during which others remove samples"),
    "--edited-later": NamedScene(
        place="crash_edits.LateEditScene", text="killed jobs that go on after others have removed samples"
    ),
    "--purge": NamedScene(place="crash_purge.PurgeScene", text="purges of an output with tags and a text layer"),
}
