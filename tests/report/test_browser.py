"""The report in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.pages import page_of
from tests.support.browser import needs_chromium, open_page

OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"
PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
OUTSIDE = """[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, svg, pre')
    && part.getBoundingClientRect().right > window.innerWidth + 1).map(part => part.outerHTML.slice(0, 200))"""
NO_SCRIPTS = "[document.scripts.length, document.title.startsWith('Latents in')]"
TEXT_SIZES = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_has_no_overflow_no_requests_and_no_errors(
    output_with_gallery: Path, tmp_path: Path, width: int
) -> None:
    page_of(output_with_gallery)
    expressions = [WIDTHS, OPEN_ALL, WIDTHS, PICTURES, OUTSIDE, NO_SCRIPTS, TEXT_SIZES]
    picture = tmp_path / "page.png"
    view = open_page(output_with_gallery / "report.html", width=width, expressions=expressions, screenshot=picture)
    assert [url for url in view.requests if not url.startswith("data:")] == [] and view.errors == []
    closed, _, opened, pictures, outside, scripts, text_sizes = view.values
    assert closed[0] <= closed[1] == width and opened[0] <= width and outside == []
    assert pictures == [True] * 4 and scripts == [0, True]
    assert min(text_sizes) >= 9, "texts of charts are large enough to read"
    with Image.open(picture) as image:
        assert image.width == width and np.asarray(image.convert("L"), dtype=float).std() > 10
