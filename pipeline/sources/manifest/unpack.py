"""Unpacked copies of manifests whose rows cannot be found in the file itself: gzip, and arrays of JSON objects.

A copy is a nameless local file. A process makes it once, and writes an array as one JSON object per line.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, Any

from pipeline.errors import ConfigError, SourceChanged
from pipeline.sources.manifest.layout import known_layout
from pipeline.sources.retrying_file import file_facts, open_retrying
from pipeline.storage.urls import FileFacts, canonical

MAX_BYTES = 64 << 30
"""Largest unpacked copy."""
READ_CHARS = 1 << 20
MAX_ROW_CHARS = 16 << 20
"""Longest object of a JSON array in characters. Python needs up to 20 bytes for each."""
MAX_RATIO, FREE_BYTES = 250, 1 << 30
"""Largest ratio of unpacked to packed bytes, beyond the first gigabyte: text that people write packs to a tenth."""


def open_text(url: str, size_bytes: int) -> IO[bytes]:
    """Open the text of a manifest for reading and seeking, unpacked if it has to be.

    ConfigError if it cannot be unpacked.
    """
    if not known_layout(url).is_unpacked_first:
        return open_retrying(url, size_bytes)
    try:
        copy = _unpacked(url, file_facts(url))
    except FileNotFoundError:
        raise SourceChanged(f"manifest '{canonical(url)}' is gone") from None
    return open(f"/proc/self/fd/{copy.fileno()}", "rb")  # a position of its own


@lru_cache(maxsize=2)
def _unpacked(url: str, facts: FileFacts) -> IO[bytes]:
    layout = known_layout(url)
    copy = tempfile.TemporaryFile()  # noqa: SIM115, because the cache keeps it open
    with open_retrying(url, facts.size) as packed:
        try:
            text: Any = gzip.GzipFile(fileobj=packed) if layout.compressed else packed
            if layout.name == "json":
                _write_lines(url, _limited(url, text, packed), copy)
            else:
                shutil.copyfileobj(_limited(url, text, packed), copy, READ_CHARS)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            problem = "ends early" if isinstance(error, EOFError) else "is damaged, or not compressed with gzip"
            raise ConfigError(f"manifest '{canonical(url)}' {problem}") from None
    copy.flush()
    return copy


def _limited(url: str, text: Any, packed: IO[bytes]) -> Any:
    """A file that raises ConfigError when it gives more than ``MAX_BYTES``, or far more than ``packed`` has."""

    class Limited(io.RawIOBase):
        total = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = text.read(len(buffer))
            self.total += len(data)
            if self.total > MAX_BYTES:
                raise ConfigError(f"manifest '{canonical(url)}' unpacks to more than {MAX_BYTES >> 30} GB")
            if self.total > FREE_BYTES + MAX_RATIO * packed.tell():
                raise ConfigError(
                    f"manifest '{canonical(url)}' unpacks to more than {MAX_RATIO} times its size; unpack it yourself if "
                    "it is what you expect"
                )
            buffer[: len(data)] = data
            return len(data)

    return Limited()


def _write_lines(url: str, text: Any, copy: IO[bytes]) -> None:
    """Write the objects of a JSON array one per line."""
    characters = io.TextIOWrapper(io.BufferedReader(text, READ_CHARS), encoding="utf-8-sig")
    num_rows = 0
    try:
        for value in _objects(url, characters):
            copy.write(json.dumps(value).encode() + b"\n")
            num_rows += 1
    except UnicodeDecodeError:
        raise ConfigError(
            f"manifest '{canonical(url)}' is not UTF-8 near row {num_rows + 1}; save it as UTF-8"
        ) from None


def _objects(url: str, characters: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array, or objects that follow one another. ConfigError names the row that is neither."""
    decoder = json.JSONDecoder(parse_constant=lambda word: None)
    name, text, position, row, ended = f"manifest '{canonical(url)}'", "", 0, 1, False
    while True:
        while position < len(text) and text[position] in " \t\r\n,[]":
            position += 1
        if position < len(text) and text[position] != "{":
            raise ConfigError(f"{name}: row {row} is not an object; expected a JSON array of objects")
        if position < len(text):
            start = position
            try:
                value, position = decoder.raw_decode(text, position)
            except (ValueError, RecursionError):  # ValueError: not JSON, or a number with thousands of digits
                if ended or len(text) - position > MAX_ROW_CHARS:
                    raise ConfigError(f"{name}: row {row} is not strict JSON, or the file ends in it") from None
            else:
                if position - start > MAX_ROW_CHARS:
                    raise ConfigError(f"{name}: row {row} has more than {MAX_ROW_CHARS >> 20} MB; a row names a video")
                if row == 1 and value and all(isinstance(field, dict | list) for field in value.values()):
                    raise ConfigError(
                        f"{name} is one object with the field '{next(iter(value))}'; expected an array of objects"
                    )
                yield value
                row += 1
                continue
        elif ended:
            return
        more = characters.read(min(max(READ_CHARS, len(text) - position), MAX_ROW_CHARS))
        ended = not more
        text, position = text[position:] + more, 0
