"""Entries of a cache on local disk are whole or absent, and made by one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.local.cache import make_once, write_whole

MAKE = """
import os, signal, sys, time
from pathlib import Path
from pipeline.storage.local.cache import make_once

def make(partial):
    partial.mkdir()
    (partial / "half").write_text("x")
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    (partial / "whole").write_text("x")

make_once(Path(sys.argv[1]), make)
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def start(entry: Path, log: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(entry), str(log), how], stdout=subprocess.PIPE, text=True)


def test_one_of_several_processes_makes_an_entry_and_all_see_it_whole(tmp_path: Path) -> None:
    processes = [start(tmp_path / "entry", tmp_path / "log", "live") for _ in range(4)]
    assert {process.communicate(timeout=60)[0] for process in processes} == {"['half', 'whole']\n"}
    assert (tmp_path / "log").read_text() == "made\n"


def test_what_a_killed_process_left_does_not_count_as_made(tmp_path: Path) -> None:
    entry, log = tmp_path / "entry", tmp_path / "log"
    assert start(entry, log, "die").wait(timeout=60) < 0
    assert not entry.exists()
    assert start(entry, log, "live").communicate(timeout=60)[0] == "['half', 'whole']\n"
    assert log.read_text() == "made\nmade\n"


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "new", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new.lock"]
