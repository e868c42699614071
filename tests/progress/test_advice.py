from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.progress.advice import ADVICE, SKIPS, advice
from tests.support.paths import ROOT

PIPELINE = ROOT / "pipeline"


def reasons(path: Path) -> Iterator[str]:
    """Every reason for a reject that a module gives."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ("Rejected", "Reject") and len(node.args) == 3:
            yield from texts(node.args[1])


def texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.Constant):
        yield str(node.value)


def test_every_reason_for_a_reject_has_advice_and_no_advice_is_left_over() -> None:
    made = {reason for path in PIPELINE.rglob("*.py") for reason in reasons(path)}
    made |= {"memory", "decoder_error", "invalid_data"}  # what decode_worker.py answers in lists
    assert made == ADVICE.keys()


def test_advice_names_the_reason_to_retry() -> None:
    assert advice("fetch/not_found").endswith("then --retry-rejects not_found")
    assert not [text for text in map(advice, ADVICE) if "{" in text]


def test_every_reason_of_a_skip_is_explained() -> None:
    made: set[str] = set()
    for path in (PIPELINE / "video" / "windows.py", PIPELINE / "video" / "decoders.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Skip":
                made |= {text for keyword in node.keywords if keyword.arg == "reason" for text in texts(keyword.value)}
            elif isinstance(node, ast.FunctionDef) and node.name == "choose_bucket":
                made |= {text for part in ast.walk(node) if isinstance(part, ast.Return) for text in texts(part.value)}
    assert made == SKIPS.keys()
