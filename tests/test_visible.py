"""Foreign text in terminals and logs: it cannot clear the screen, move the cursor or add lines that look like ours."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import encode_dataset, export_dataset, report, verify_dataset
from pipeline.progress.terminal import CLEAR_LINE, Terminal
from pipeline.visible import HIDDEN, JOINERS, QUOTE, visible
from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_image
from tests.support.golden import TINY
from tests.support.paths import ROOT

CONTROLS = "\x1b[2J\x1b]0;title\x07\r\x9b2K\x85\u2028\u2029\u202e\u2066\u200b\ufeff\U000e0041"
"""ESC, CR, C1 controls, every line break of Unicode, changes of direction, and invisible characters."""
BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
FORGED = "finished: forged"
HOSTILE = CONTROLS + "".join(f"{line_break}{FORGED}" for line_break in BREAKS)


def assert_clean(text: str) -> None:
    """Check that a text has no controls, and no line that foreign text began."""
    bad = {hex(ord(c)) for c in text if c != "\n" and unicodedata.category(c) in HIDDEN and c not in JOINERS}
    assert not bad, f"{bad} in {text!r}"
    assert not [line for line in text.splitlines() if line.strip().startswith(FORGED)], text


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """A folder, a tar and a manifest whose names, captions and columns are hostile; most items are rejects."""
    folder = tmp_path / "videos"
    folder.mkdir()
    name = HOSTILE.replace("\x00", "")[:60]
    picture = make_image(folder / f"good{name}.png", size=(32, 32)).read_bytes()
    (folder / f"good{name}.json").write_text(json.dumps({HOSTILE: "a text of several words"}))
    (folder / f"bad{name}.mp4").write_text("no video")
    (folder / f"bad{name}.txt").write_text(f"a caption {HOSTILE}")
    tar = write_tar(tmp_path / "a.tar", [(f"a{name}.mp4", b"no video"), (f"b{name}.b.txt", b"x"), ("c.png", picture)])
    rows = {"path": [f"{HOSTILE}.mp4", f"s3x://{HOSTILE}"], f"note{HOSTILE}": ["a few words", HOSTILE]}
    pq.write_table(pa.table(rows), tmp_path / "m.parquet")
    return [str(folder), str(tar), str(tmp_path / "m.parquet")]


def test_no_key_caption_column_or_message_reaches_the_terminal_raw(
    tmp_path: Path, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arguments = ["--local", "--output", out, "--vae", str(TINY), "--buckets", "32x32x1", "--max-rejects", "1"]
    for source in sources:
        arguments += ["--source", source]
    for more in (["--dry-run", "--clips-per-s", "1"], []):
        assert encode_dataset.main([*arguments, *more]) == 0
        printed = capsys.readouterr().out
        assert "\\u001b[2J" in printed and "e.g." in printed
        assert_clean(printed)
    (tmp_path / "out" / "shards").rename(tmp_path / "out" / "gone")
    for main, more, code in (
        (verify_dataset.main, [], 1),
        (report.main, [], 0),
        (export_dataset.main, ["--to", HOSTILE, "--output", str(tmp_path / "export")], 2),
    ):
        assert main([out, *more]) == code
        assert_clean(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", f"/missing/{HOSTILE}.mp4"],
        ["--source", f"{HOSTILE}://x"],
        ["--output", f"{HOSTILE}://x"],
        ["--vae", f"/missing/{HOSTILE}"],
        ["--buckets", HOSTILE],
        ["--fps", HOSTILE],
        ["--config", f"/missing/{HOSTILE}.yaml"],
        [f"--{HOSTILE}", "1"],
        [HOSTILE],
        ["--dry-run", HOSTILE],
        ["--clips-per-s", HOSTILE, "--dry-run"],
    ],
)
def test_errors_about_arguments_are_one_line(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--source": str(ROOT), "--output": str(tmp_path / "out"), "--vae": str(TINY), "--buckets": "32x32x1"}
    given = {name: value for name, value in given.items() if name not in arguments}
    command = ["--local", *(part for pair in given.items() for part in pair), *arguments]
    assert encode_dataset.main(command) in (1, 2)
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert printed.out.startswith("error: ") and printed.out.count("\n") == 1


@pytest.mark.parametrize("main", [report.main, verify_dataset.main, export_dataset.main])
@pytest.mark.parametrize(
    "arguments", [[HOSTILE], ["out", HOSTILE], ["out", f"--{HOSTILE}"], ["out", "--gpus", HOSTILE]]
)
def test_other_programs_print_one_line_too(
    main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert printed.out.startswith("error: ") and printed.out.count("\n") == 1


def test_a_config_file_cannot_forge_lines_and_is_printed_so_that_it_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({"source": HOSTILE, "caption-column": HOSTILE}))
    printed = []
    for _ in range(2):
        assert encode_dataset.main(["--config", str(path), "--print-config"]) == 0
        printed.append(capsys.readouterr().out)
        assert_clean(printed[-1])
        path.write_text(printed[-1])
    assert printed[0] == printed[1] and "\\u202E" in printed[0]
    for content in (f'"{json.dumps(HOSTILE)[1:-1]}": 1', json.dumps({"fps": HOSTILE}), f"fps: '{FORGED}\n\n{FORGED}'"):
        path.write_text(content)
        assert encode_dataset.main(["--config", str(path)]) == 2
        assert_clean(capsys.readouterr().out)


def test_the_fields_in_which_recipes_differ_stand_below_the_error(
    tmp_path: Path, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--local", "--output", str(tmp_path / "out"), "--vae", str(TINY), "--buckets", "32x32x1"]
    arguments += ["--source", sources[1], "--max-rejects", "1"]
    assert encode_dataset.main([*arguments, "--caption-column", HOSTILE]) == 0
    capsys.readouterr()
    assert encode_dataset.main([*arguments, "--fps", "3"]) == 2
    printed = capsys.readouterr().out
    assert_clean(printed)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["error", "  caption_column", "  fps"]


def test_logs_tracebacks_and_warnings_are_escaped_in_a_process() -> None:
    code = (
        "import logging, sys, threading, warnings\n"
        "from pipeline.visible import make_foreign_text_visible\n"
        "make_foreign_text_visible()\n"
        "hostile = sys.argv[1]\n"
        "logging.getLogger('x').error('a %s', hostile)\n"
        "logging.error(hostile)\n"
        "warnings.warn(hostile)\n"
        "def fail(): raise OSError(hostile)\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "try: fail()\n"
        "except OSError as error: raise RuntimeError(hostile + '\\ud800') from error\n"
    )
    done = subprocess.run([sys.executable, "-c", code, HOSTILE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("OSError") == 2 and "RuntimeError" in done.stderr
    assert "which led to" in done.stderr and QUOTE in done.stderr
    assert_clean(done.stderr)


def test_a_log_call_with_wrong_arguments_still_ends_in_a_record() -> None:
    from pipeline import visible as module

    before = logging.getLogRecordFactory()
    hooks = sys.excepthook, module.threading.excepthook
    try:
        module.make_foreign_text_visible()
        record = logging.getLogRecordFactory()("x", logging.INFO, "f", 1, "%d %d", (1,), None)
        assert record.msg == "%d %d"
    finally:
        logging.setLogRecordFactory(before)
        logging.captureWarnings(False)
        sys.excepthook, module.threading.excepthook = hooks


@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_becomes_one_visible_line(text: str) -> None:
    shown = visible(text)
    assert_clean(shown)
    assert len(shown.splitlines()) <= 1 and visible(shown) == shown
    shown.encode()


def test_text_that_people_write_stays_as_it_is() -> None:
    text = "Größe 視頻 वीडियो می‌خواهم 👩‍👩‍👧 a\u0301 — “quoted” \\x1b"
    assert visible(text) == text


def test_a_terminal_with_few_characters_gets_escapes_for_the_others() -> None:
    read, write = os.pipe()
    with open(write, "w", encoding="ascii") as stream:
        Terminal(stream).say("größer \ud800")
        Terminal(stream).show(f"視頻 {HOSTILE}")
    with open(read, "rb") as shown:
        first, second = shown.read().decode().split("\n")
    assert first == "gr\\xf6\\xdfer \\ud800" and second.startswith(f"{CLEAR_LINE}\\u8996")
    assert_clean(second.removeprefix(CLEAR_LINE))
