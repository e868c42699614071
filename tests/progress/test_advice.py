"""Every reject and skip that the code can produce has advice, and unknown ones do no harm."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NAME_SEPARATOR
from pipeline.output.counts import Counts
from pipeline.progress.advice import ADVICE, SKIP_MEANINGS, UNKNOWN_SKIP, reject_advice, skip_meaning
from pipeline.progress.summary import Summary
from tests.support.paths import ROOT

PIPELINE = ROOT / "pipeline"


def reject_names(path: Path) -> Iterator[str]:
    """Every ``stage/reason`` that a module can give to a reject; ``*`` for a stage that is a variable."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ("Rejected", "Reject") and len(node.args) == 3:
            for reason in texts(node.args[1]):
                yield from (f"{stage}{NAME_SEPARATOR}{reason}" for stage in list(texts(node.args[0])) or ["*"])


def texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.Constant):
        yield str(node.value)


def made_names() -> set[str]:
    made = {name for path in PIPELINE.rglob("*.py") for name in reject_names(path)}
    made |= {"*/memory", "*/decoder_error", "*/invalid_data"}  # decode_worker.py sends these as lists
    stages = {name: ("probe", "decode") if name.startswith("*") else ("",) for name in made}
    return {name.replace("*", stage) for name in made for stage in stages[name]}


def test_every_reject_has_advice_and_no_advice_is_left_over() -> None:
    used = set()
    for name in made_names():
        _, _, reason = name.partition(NAME_SEPARATOR)
        keys = [key for key in (name, reason) if key in ADVICE]
        assert keys, f"no advice for {name}"
        used.add(keys[0])
    assert used == ADVICE.keys()


def test_advice_names_the_rejects_to_retry() -> None:
    assert reject_advice("fetch/not_found").endswith("then --retry-rejects not_found")
    assert not [text for text in map(reject_advice, ADVICE) if "{" in text]


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("read/too_large", "--max-item-gb"),
        ("fetch/too_large", "--max-item-gb"),
        ("probe/too_large", "--max-pixels"),
        ("probe/too_long", "--max-duration-s"),
        ("probe/memory", "--decode-memory-gb"),
        ("decode/memory", "--decode-memory-gb"),
        ("decode/timeout", "--decode-timeout-s"),
    ],
)
def test_advice_about_a_limit_names_its_flag(name: str, flag: str) -> None:
    assert flag in reject_advice(name)


def test_memory_of_the_encoder_is_not_that_of_a_decoder() -> None:
    assert "--decode-memory-gb" not in reject_advice("encode/memory")
    assert "smaller buckets" in reject_advice("encode/memory")


def test_reasons_of_another_version_get_a_general_sentence() -> None:
    assert reject_advice("decode/cursed").startswith("another version") and "decode/cursed" in reject_advice(
        "decode/cursed"
    )
    assert skip_meaning("boring") == UNKNOWN_SKIP


def test_advice_names_no_remainder_that_is_used_already() -> None:
    counts = Counts(skips=Counter({"remainder": 1, "too_short": 2}))
    fields: dict[str, Any] = {"recipe": "r", "exit_code": 0, "finished": True, "units": 1, "units_done_now": 1}
    texts = {
        remainder: "\n".join(Summary(output="o", elapsed_s=1.0, counts=counts, remainder=remainder, **fields).lines())
        for remainder in ("skip", "shorten")
    }
    assert texts["skip"].count("--remainder shorten") == 2 and "--remainder" not in texts["shorten"]
    assert skip_meaning("cut", "shorten") == SKIP_MEANINGS["cut"]


def test_a_summary_survives_reasons_and_activities_of_another_version() -> None:
    summary = Summary(
        output="out",
        recipe="r",
        exit_code=0,
        finished=True,
        units=1,
        units_done_now=1,
        elapsed_s=1.0,
        counts=Counts(skips=Counter({"boring": 2}), rejects=Counter({"decode/cursed": 1, "no stage": 3})),
        encoder_s=100.0,
        idle_s={"teleport": 50.0},
    )
    text = str(summary)
    assert (
        "decode/cursed: another version" in text and "boring: another version" in text and "mostly for teleport" in text
    )


def test_every_reason_of_a_skip_is_explained() -> None:
    made: set[str] = set()
    for path in (PIPELINE / "video" / name for name in ("windows.py", "placement.py", "ranges.py", "decoders.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Skip":
                made |= {text for keyword in node.keywords if keyword.arg == "reason" for text in texts(keyword.value)}
            elif isinstance(node, ast.FunctionDef) and node.name == "choose_bucket":
                made |= {text for part in ast.walk(node) if isinstance(part, ast.Return) for text in texts(part.value)}
    assert made == SKIP_MEANINGS.keys()


def test_a_summary_says_when_rejects_exceed_the_limit() -> None:
    fields = {"output": "out", "recipe": "r", "units": 1, "units_done_now": 1, "elapsed_s": 1.0}
    assert "out  finished\n" in str(Summary(exit_code=0, finished=True, **fields))
    assert "finished, with more rejects" in str(Summary(exit_code=3, finished=True, **fields))
    assert "stopped: too many rejects" in str(Summary(exit_code=3, finished=False, **fields))
