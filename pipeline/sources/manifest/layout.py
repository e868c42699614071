"""The layout of a manifest as its name gives it, and the errors of the library that reads it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import ConfigError, SourceChanged
from pipeline.storage.urls import canonical

TEXT_LAYOUTS = ("csv", "tsv", "jsonl", "ndjson", "json")
SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a manifest, from the end of its name."""

    name: str
    """``parquet``, or one of ``TEXT_LAYOUTS``."""
    compressed: bool = False
    """True if the file is compressed with gzip."""

    @property
    def separator(self) -> str | None:
        """Character between the columns of a table of text; None for other layouts."""
        return SEPARATORS.get(self.name)

    def reads_as_text(self, type_: pa.DataType) -> bool:
        """Return whether a path, caption or range of this type is read as text: its type was only guessed from texts."""
        return self.separator is not None or (self.name != "parquet" and pa.types.is_timestamp(type_))

    @property
    def is_unpacked_first(self) -> bool:
        """True if rows can only be found in an unpacked copy of the file."""
        return self.compressed or self.name == "json"


def layout_of(url: str) -> Layout | None:
    """The layout that a URL's ending names; None if it names none."""
    match = re.search(r"\.(\w+?)(\.gz)?$", canonical(url).lower())
    if match is None or match[1] not in (*TEXT_LAYOUTS, "parquet") or (match[1] == "parquet" and match[2]):
        return None
    return Layout(match[1], match[2] is not None)


def known_layout(url: str) -> Layout:
    """The layout of a URL that is known to be a manifest."""
    layout = layout_of(url)
    assert layout is not None, f"{canonical(url)} is not a manifest"
    return layout


@contextlib.contextmanager
def arrow_errors(url: str, first_row: int = 0) -> Iterator[None]:
    """Replace Arrow's errors, which quote values, by a ConfigError that names the manifest, the row and the reason.

    first_row: number of rows before the ones that are read.
    """
    layout = known_layout(url).name
    try:
        yield
    except FileNotFoundError:
        raise SourceChanged(f"manifest '{canonical(url)}' is gone") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        row = re.search(r"row #?(\d+)", str(error), re.IGNORECASE)
        # Arrow counts a header as row 1, and rows of JSON from 0 on
        number = first_row + int(row[1]) + (-1 if layout in SEPARATORS else 1) if row else 0
        where = f" from row {number} on" if row else ""
        reason = _reason(str(error))
        raise ConfigError(f"manifest '{canonical(url)}' cannot be read as {layout}{where}{reason}") from None


def _reason(text: str) -> str:
    """The part of an error of Arrow that quotes no values."""
    if match := re.search(r"Expected (\d+) columns, got (\d+)", text):
        return f": it has {match[2]} columns where the header has {match[1]}; quotes are doubled in CSV, not escaped"
    if match := re.search(r"Column\(/(.*?)\) changed from (\w+) to (\w+)", text):
        name = match[1].removesuffix("/[]")
        return f": column '{name}' is {match[2]} before and {match[3]} there; give all rows the same type"
    if match := re.search(r"Column\(/(.*?)\) was specified twice", text):
        return f": column '{match[1]}' is given twice"
    if "changed from object" in text:
        return ": it is not an object"
    return ""
