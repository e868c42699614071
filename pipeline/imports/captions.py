"""Captions from the table that a trainer's preprocessing read, for formats whose files have none."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.imports.imported_sample import text_of
from pipeline.sources.retrying_file import existing_file_facts, read_whole
from pipeline.storage.urls import canonical, suffix_of

PATH_COLUMNS = ("media_path", "video_path", "video", "path", "file_name", "file")
"""Columns that may have the path of a clip's video. The first one that a row has is taken."""
CAPTION_COLUMN = "caption"
MAX_BYTES = 1 << 30
MAX_CELL_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionTable:
    """The captions of videos by their paths without suffix, relative to the folder of the table."""

    sha256: str
    captions: Mapping[str, str]

    def caption_of(self, key: str) -> str | None:
        """Return the caption of the sample that lies at this path below the source's folder of latents."""
        return self.captions.get(key)


def read_captions(url: str) -> CaptionTable:
    """Read a table in JSON, JSONL or CSV. ConfigError if it is something else or has no captions."""
    try:
        facts = existing_file_facts(url)
    except FileNotFoundError:
        raise ConfigError(f"--captions: there is no file at '{canonical(url)}'") from None
    if facts.size > MAX_BYTES:
        raise ConfigError(f"--captions: '{canonical(url)}' has {facts.size} bytes; the limit is {MAX_BYTES}")
    content = read_whole(url, facts.size)
    try:
        captions = dict(_captions(content.decode("utf-8-sig"), url))
    except (ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"--captions: '{canonical(url)}' cannot be read: {str(error)[:200]}") from None
    if not captions:
        columns = ", ".join(PATH_COLUMNS)
        raise ConfigError(
            f"--captions: '{canonical(url)}' has no row with a '{CAPTION_COLUMN}' and a path in one of the columns {columns}"
        )
    return CaptionTable(sha256=hashlib.sha256(content).hexdigest()[:16], captions=captions)


def _captions(text: str, url: str) -> Iterator[tuple[str, str]]:
    """Yield key and caption of every row that has both, as LTX-2's trainer names the files of its latents."""
    parent = canonical(url).removeprefix("file://").rpartition("/")[0]
    for row in _rows(text, suffix_of(url)):
        path = next((row[name] for name in PATH_COLUMNS if isinstance(row.get(name), str)), None)
        caption = text_of(row.get(CAPTION_COLUMN))
        if path and caption:
            relative = path.strip().removeprefix(f"{parent}/").removeprefix("./").lstrip("/")
            folder, slash, name = relative.rpartition("/")
            yield f"{folder}{slash}{name.rpartition('.')[0] or name}", caption


def _rows(text: str, suffix: str) -> Iterator[dict[str, Any]]:
    if suffix == "csv":
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        yield from csv.DictReader(io.StringIO(text))
        return
    values = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(values, list):
        raise ValueError("expected a list of objects")
    yield from (row for row in values if isinstance(row, dict))
