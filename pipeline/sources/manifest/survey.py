"""Surveys a manifest when it is planned, and reads the rows of a slice."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.sources.manifest.layout import arrow_errors, known_layout
from pipeline.sources.manifest.parquet_pages import ManifestFile, check_pages, check_rows
from pipeline.sources.manifest.parquet_rows import check_times, heavy_columns, parquet_rows, plain_schema
from pipeline.sources.manifest.records import Slice, cut_records, read_header
from pipeline.sources.manifest.text_rows import parse, text_schema
from pipeline.sources.manifest.unpack import open_text
from pipeline.sources.retrying_file import file_facts, open_retrying
from pipeline.storage.urls import canonical

SAMPLE_ROWS = 100
"""Number of rows whose values help to tell what a column holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Facts of a manifest that planning needs."""

    schema: pa.Schema
    slices: list[Slice]
    header: str = ""
    """First line of a table of text."""
    heavy: list[str] = field(default_factory=list)
    """Columns with files in them."""
    sample: pa.Table | None = None
    """The first rows of a text manifest."""


def survey(url: str, rows_per_slice: int, watch: Callable[[pa.Table], None] = lambda table: None) -> Survey:
    """Find the columns with their types, and cut the manifest into slices. Reads text files twice, a block at a time.

    watch: gets the rows of text files, a block at a time. ConfigError if the file cannot be read as what its name says.
    """
    layout = known_layout(url)
    with arrow_errors(url):
        size_bytes = file_facts(url).size
        if layout.name == "parquet":
            with open_retrying(url, size_bytes) as f:
                parquet = ManifestFile(f)
                check_rows(parquet, size_bytes, f"manifest '{canonical(url)}'")
                num_rows = parquet.metadata.num_rows
                starts = range(0, num_rows, rows_per_slice)
                slices = [Slice(start=s, stop=min(s + rows_per_slice, num_rows)) for s in starts]
                schema = plain_schema(parquet, url)
                heavy = heavy_columns(parquet, schema)
                check_pages(parquet, set(schema.names) - set(heavy), f"manifest '{canonical(url)}'")
                check_times(parquet, schema, url)
                return Survey(schema=schema, slices=slices, heavy=heavy)
        with open_text(url, size_bytes) as f:
            header = read_header(f, layout, url)
            slices = cut_records(f, header, rows_per_slice, layout, url)
            samples: list[pa.Table] = []

            def watch_and_sample(table: pa.Table) -> None:
                if not samples:  # a slice, even an empty one, would keep the memory of its whole block
                    samples.append(table.slice(0, SAMPLE_ROWS))
                watch(table)

            schema = text_schema(url, f, header, slices, layout, watch_and_sample)
            text = header.decode("utf-8-sig") if layout.separator else ""
            return Survey(schema=schema, slices=slices, header=text, sample=samples[0])


def row_ends(url: str, part: Slice, size_bytes: int) -> list[int]:
    """The offset behind each row of a slice of a text manifest."""
    with arrow_errors(url, part.start), open_text(url, size_bytes) as f:
        f.seek(part.byte_start)
        content = io.BytesIO(f.read(part.byte_stop - part.byte_start))
    return [part.byte_start + row.byte_stop for row in cut_records(content, b"", 1, known_layout(url), url)]


def rows(url: str, part: Slice, header: str, schema: pa.Schema, size_bytes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a slice in order, with the types that planning found. ConfigError if they cannot be read.

    A Parquet file is read only in the columns of ``schema``, or in all of its columns if ``schema`` is empty.
    """
    layout = known_layout(url)
    with arrow_errors(url, part.start):
        if layout.name == "parquet":
            with open_retrying(url, size_bytes) as f:
                parquet = ManifestFile(f)
                yield from parquet_rows(parquet, part.start, part.stop, schema.names or None, url)
            return
        with open_text(url, size_bytes) as f:
            f.seek(part.byte_start)
            content = f.read(part.byte_stop - part.byte_start)
        yield from parse(header.encode(), content, layout, schema).to_pylist()
