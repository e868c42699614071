"""Reports as the tests read them."""

from __future__ import annotations

import html
import re
from pathlib import Path

from pipeline.report.page import write_page
from pipeline.storage.store import Store

SECRET = "CaNaRy7f3a91"  # noqa: S105 (a made-up secret)
SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
HOSTILE = [
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "abc\u202egpj.exe\u2066",
    "line\nbreak\u2028\x00\x1b[31m",
    "' onclick='",
]


def page_of(output: Path) -> str:
    """Write the report again and return its HTML."""
    write_page(Store(str(output)))
    return (output / "report.html").read_text()


def text_of(page: str) -> str:
    """Return roughly the text that a reader sees: without tags and style, with single spaces."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)))
