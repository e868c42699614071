"""What dead jobs left is removed from a finished output, and what cannot be removed ends no job."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.encode import cleanup
from pipeline.encode.cleanup import clean_up
from pipeline.errors import IntegrityError, StoreError
from pipeline.output.index import newest_index
from pipeline.storage.store import Store
from tests.support.latent_set import write_latents


@pytest.mark.parametrize("error", [StoreError("x: 403 denied"), IntegrityError("x: odd"), OSError(errno.EACCES, "no")])
def test_every_step_that_fails_is_a_note_and_the_next_ones_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    store = Store(str(write_latents(tmp_path / "out", [Bucket(17, 32, 32)] * 2)))
    index = newest_index(store)
    assert index is not None and clean_up(store, {"unit"}, index) == []
    for name in ("remove_orphans", "remove_orphan_parts", "remove_attempts"):
        monkeypatch.setattr(cleanup, name, fail)
    for name in ("abort_uploads", "sweep"):
        monkeypatch.setattr(Store, name, fail)
    notes = clean_up(store, {"unit"}, index)
    assert len(notes) == 5 and all(note.endswith(str(error)) for note in notes)
