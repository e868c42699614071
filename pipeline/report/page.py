"""``report.html``: an output at a glance, as one file that needs nothing else and runs no script.

It can be made again at any time from what the output holds, by ``jobs/report.py``, which can add a gallery. Whatever
came with the data (keys, captions, messages, URLs) is escaped, cut to a readable length, and free of credentials.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.progress.activities import activity_label
from pipeline.progress.advice import reject_advice, skip_meaning
from pipeline.progress.formatting import byte_size, duration, number, percent
from pipeline.report import charts
from pipeline.report.dataset_stats import DURATION_EDGES_S, Counts, DatasetStats, find
from pipeline.report.history import SLOWEST, Job, read_history
from pipeline.report.latent_stats import JUDGED_AFTER_CLIPS, LatentStatistics
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store
from pipeline.storage.urls import without_secrets
from stvae.card import Card

FOLDER = Path(__file__).parent
PATH = "report.html"
GALLERY = "previews/gallery.json"
ROWS_SHOWN = 20
"""Of tables whose length depends on the data; what is left is summed in one more row, or counted."""
JOBS_DRAWN = 4
BUCKETS_OPEN = 3
"""Of the gallery; the others unfold."""
REJECTS_NOTED = 0.05
TEXT_SHOWN = 200
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the text around them."""
TICKS_S = [
    n * unit for unit, counts in ((1, (1, 2, 5, 10, 20)), (60, (1, 2, 5, 10, 20)), (3600, (1, 2, 4, 8))) for n in counts
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A sample of the gallery: its picture, or why there is none."""

    id: str
    bucket: str
    key: str
    source: str
    caption: str | None
    start_s: float
    end_s: float
    num_frames: int
    psnr_db: float = 0.0
    webp: str = ""
    """Base64."""
    width: int = 0
    height: int = 0
    error: str = ""


def write_page(store: Store) -> None:
    """Write ``report.html``, over an earlier one. ConfigError if there is no output."""
    store.put(PATH, render(find(store), read_history(store), read_gallery(store)).encode())
    failpoint(Failpoint.REPORT_WRITTEN)


def read_gallery(store: Store) -> list[Picture]:
    """The pictures that were made last; none if none were."""
    try:
        return [Picture(**values) for values in json.loads(store.get(GALLERY))]
    except FileNotFoundError:
        return []


def render(findings: DatasetStats, history: Sequence[Job], gallery: Sequence[Picture]) -> str:
    """The page's HTML."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    dataset, total = findings.dataset, findings.total
    num_skips, num_rejects = (sum(g.count for g in kinds.values()) for kinds in (findings.skips, findings.rejects))
    windows = total.clips + num_skips + num_rejects
    return _template().render(
        style=Markup(style),  # noqa: S704 (our own file)
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        findings=findings,
        card=dataset.card,
        recipe=dataset.recipe.to_json(),
        total=total,
        windows=windows,
        num_items=sum(source.num_items for source in findings.sources.values()),
        num_skips=num_skips,
        num_rejects=num_rejects,
        notices=notices(findings, windows),
        buckets=_most(findings.buckets, lambda bucket: bucket.clips),
        sources=_most(findings.sources, lambda source: source.num_items),
        skips=_most(findings.skips, lambda group: group.count),
        rejects=_most(findings.rejects, lambda group: group.count),
        durations=[
            (name, _durations(c))
            for name, c in (("Videos", findings.item_durations), ("Clips", findings.clip_durations))
        ],
        latents=findings.latents and _latents(findings.latents, dataset.card),
        gallery=[(name, list(group)) for name, group in groupby(gallery, lambda picture: picture.bucket)],
        history=history,
        throughput=[(job, _throughput(job)) for job in history if job.timed][-JOBS_DRAWN:],
        activities=_activities(history),
        slowest=sorted((unit for job in history for unit in job.slowest), reverse=True)[:SLOWEST],
        infinity=float("inf"),
        rows_shown=ROWS_SHOWN,
        buckets_open=BUCKETS_OPEN,
        charts=charts,
        command=f"python jobs/report.py {shlex.quote(findings.url)}",
        now=when(time.time()),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (shown, number, byte_size, duration, percent, when, reject_advice, skip_meaning):
        environment.filters[filter_.__name__] = filter_
    return environment.get_template("page.html")


def notices(findings: DatasetStats, windows: int) -> list[str]:
    """What someone should look at before trusting the output, in sentences."""
    found = []
    if not findings.finished:
        found.append(
            f"Not finished: {findings.committed:,} of {findings.units:,} units are committed. Run the same encode command "
            "again to go on; this page counts what is committed."
        )
    rejects = sum(group.count for group in findings.rejects.values())
    if rejects > REJECTS_NOTED * windows:
        found.append(
            f"{percent(rejects / windows)} of all windows were rejected. See below what to do about each kind."
        )
    odd = findings.latents.odd_channels(findings.dataset.card) if findings.latents else []
    if odd:
        found.append(
            f"Normalised latents of channel{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} are far from mean 0 and "
            "standard deviation 1: compare the VAE's shift and scale with those of this set."
        )
    if tiled := findings.encode_paths["tiled"]:
        found.append(f"{tiled:,} clips did not fit the memory whole and were encoded in tiles, which blends seams.")
    if others := findings.totals.other_environments:
        found.append(
            f"{others:,} units were made with other versions, threads or devices than those that began "
            "the output: their last bits may differ. Their unit metadata says which."
        )
    return found


def shown(value: object, length: int = TEXT_SHOWN) -> str:
    """A text of the data as people may read it: what is invisible or turns text around as escapes, the middle of a long
    one left out, no credentials. Not escaped for HTML, which the template does."""
    text = str(value)
    if "://" in text:
        text = without_secrets(text)  # before it is cut, so that no signature loses what tells it from text
    if len(text) > length:
        text = f"{text[: length * 2 // 3]} … {text[-length // 3 :]}"
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in BIDI or unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
        return " " if character in "\n\t\r" else f"\\u{ord(character):04x}"
    return character


def when(unix_s: float | None) -> str:
    """A moment in UTC."""
    return "unknown" if unix_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def _most(counts: dict[str, Any], count: Any) -> list[tuple[str, Any]]:
    return sorted(counts.items(), key=lambda pair: (-count(pair[1]), pair[0]))


def _durations(counts: Counts) -> Markup:
    """A histogram without the empty bins at its ends."""
    filled = counts.nonzero()[0]
    if not len(filled):
        return Markup("")
    first, last = int(filled[0]), int(filled[-1])
    labels = [_tick(edge) for edge in DURATION_EDGES_S[first : last + 2]]
    return charts.histogram(counts[first : last + 1].tolist(), labels, "Counts by length")


def _tick(seconds: float) -> str:
    """An edge or a moment on an axis."""
    if seconds == float("inf"):
        return "longer"
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _latents(latents: LatentStatistics, card: Card) -> dict[str, Any]:
    """What the section about latents shows."""
    normalised = latents.normalised(card)
    columns = [latents.mean, latents.std, *(normalised or ())]
    own = {"shift": card.shift, "scale": card.scale}
    return {
        "statistics": latents,
        "rows": [tuple(f"{column[c]:.4f}" for column in columns) for c in range(len(latents.mean))],
        "normalised": normalised,
        "chart": normalised and charts.whiskers(*normalised, "Mean and standard deviation of each normalised channel"),
        "own": json.dumps(own) if normalised else "",
        "judged_after": JUDGED_AFTER_CLIPS,
    }


def _throughput(job: Job) -> Markup:
    edges, rates = job.throughput()
    step = next((tick for tick in TICKS_S if edges[-1] / tick <= 5), max(1, round(edges[-1] / 5 / 86400)) * 86400)
    ticks = [(n * step, _tick(n * step)) for n in range(int(edges[-1] // step) + 1)]
    return charts.steps(edges.tolist(), rates.tolist(), ticks, "Clips per second over time")


def _activities(history: Sequence[Job]) -> list[tuple[str, float]]:
    """Seconds by what units spent them on, the largest first, the rest last."""
    total: Counter[str] = Counter()
    for job in history:
        total.update(job.activities)
    rest = total.pop("rest", 0.0)
    named = [(activity_label(name), seconds) for name, seconds in total.most_common()]
    return [*named, ("everything else", rest)] if named else []
