from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.progress.advice import ADVICE, SKIPS, advice
from tests.support.paths import ROOT

PIPELINE = ROOT / "pipeline"


def kinds(path: Path) -> Iterator[str]:
    """Every kind of reject that a module makes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "Rejected" and len(node.args) == 3:
            yield from texts(node.args[1])
        elif node.func.id == "RejectedWindow":
            yield from (text for keyword in node.keywords if keyword.arg == "kind" for text in texts(keyword.value))


def texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.Constant):
        yield str(node.value)


def test_every_kind_of_reject_has_advice_and_no_advice_is_left_over() -> None:
    made = {kind for path in PIPELINE.rglob("*.py") for kind in kinds(path)}
    made |= {"memory", "decoder_error", "invalid_data"}  # what decode_child.py answers in lists
    assert made == ADVICE.keys()


def test_advice_names_the_kind_to_retry() -> None:
    assert advice("fetch/not_found").endswith("then --retry-rejects not_found")
    assert not [text for text in map(advice, ADVICE) if "{" in text]


def test_every_reason_of_a_skip_is_explained() -> None:
    made: set[str] = set()
    for path in (PIPELINE / "clips.py", PIPELINE / "decode.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Skip":
                made |= {text for keyword in node.keywords if keyword.arg == "reason" for text in texts(keyword.value)}
            elif isinstance(node, ast.FunctionDef) and node.name == "choose_bucket":
                made |= {text for part in ast.walk(node) if isinstance(part, ast.Return) for text in texts(part.value)}
    assert made == SKIPS.keys()
