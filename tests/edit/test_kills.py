"""Edits that are killed, and jobs that are killed while others edit, on a local disk and on S3.

``python -m tests.end_to_end.crash --edits`` (or ``--edited``, ``--edited-later``) has longer drills.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobs.edit_dataset import main as edit
from pipeline.loader import LatentDataset
from pipeline.storage.failpoints import Failpoint
from pipeline.storage.store import Store
from tests.end_to_end.crash import EDIT_STEPS, LOCAL_STEPS, add_reference, every_step, survive
from tests.end_to_end.crash_edits import EditedJobScene, EditScene, LateEditScene


def test_a_command_that_edits_killed_at_any_step_is_finished_by_the_same_command(tmp_path: Path) -> None:
    scene = EditScene(tmp_path)
    add_reference(scene)
    kills = every_step(scene.steps, scene, exhaustive=False)
    assert list(kills) == [(step, 1) for step in (*LOCAL_STEPS, *EDIT_STEPS, Failpoint.CARD_WRITTEN)]


def test_a_job_killed_at_each_commit_while_others_remove_samples_ends_with_the_bytes_of_these_edits(
    tmp_path: Path,
) -> None:
    scene = EditedJobScene(tmp_path)
    add_reference(scene)
    assert len(list(every_step([Failpoint.UNIT_COMMITTED], scene, exhaustive=True))) == 5


def test_readers_see_the_same_samples_if_others_remove_some_between_a_kill_and_the_next_job(tmp_path: Path) -> None:
    scene = LateEditScene(tmp_path)
    add_reference(scene)
    assert survive(scene, [(Failpoint.UNIT_COMMITTED, 2)]) == [True]


def test_a_killed_command_on_s3_is_finished_by_the_same_command(s3: str, tmp_path: Path) -> None:
    scene = EditScene(tmp_path, f"{s3}/outputs", single_writer=True)
    add_reference(scene)
    assert survive(scene, [(Failpoint.EDITS_RECORDED, 3)]) == [True]


def test_two_removals_at_once_on_s3_add_up(s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, output = EditScene(tmp_path), f"{s3}/out"
    scene.prepare(output)
    removals = [[output, "remove", "--where", f"meta_score == {n}", "--reason", "ticket"] for n in (1, 2)]
    threads = [threading.Thread(target=edit, args=(arguments,)) for arguments in removals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LatentDataset(output).columns["key"].to_pylist() == list("034567")
    assert edit([output, "log"]) == 0
    assert "edits     1" in capsys.readouterr().out
    assert not [path for path in Store(output).list_files("") if path.startswith(".")]
