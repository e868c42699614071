"""``report.html``: an output at a glance, as one file that loads nothing and runs no script.

``jobs/report.py`` can write it again at any time from the output alone, and can add a gallery. Everything that came with
the data (keys, captions, messages, URLs) is escaped, cut to a readable length, and free of credentials.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.progress.advice import reject_advice, skip_meaning, string_advice
from pipeline.progress.formatting import byte_size, duration, number, percent
from pipeline.report import charts
from pipeline.report.dataset_stats import DatasetStats, collect_stats
from pipeline.report.display_text import display_text, format_time
from pipeline.report.history import Job, read_history
from pipeline.report.page_context import PageContext
from pipeline.report.pictures import Picture, read_pictures
from pipeline.report.text_layers import LayerSection, read_layers
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

FOLDER = Path(__file__).parent
PATH = "report.html"
FILTERS = (display_text, number, byte_size, duration, percent, format_time, reject_advice, skip_meaning, string_advice)


def write_page(store: Store) -> None:
    """Write ``report.html``; replaces an earlier one. Raises ConfigError if there is no output at this URL."""
    page = render(collect_stats(store), read_history(store), read_pictures(store), read_layers(store))
    store.put(PATH, page.encode())
    failpoint(Failpoint.REPORT_WRITTEN)


def render(
    stats: DatasetStats, history: Sequence[Job], pictures: Sequence[Picture], layers: Sequence[LayerSection] = ()
) -> str:
    """Return the page's HTML."""
    return _template().render(page=PageContext(stats=stats, history=history, pictures=pictures, layers=layers))


@cache
def _template() -> jinja2.Template:
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in FILTERS})
    environment.globals["charts"] = charts
    environment.globals["style"] = Markup(style)  # noqa: S704 (our own file)
    environment.globals["style_hash"] = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html")
