"""Searches the surroundings of a folder of videos for captions that the folder format does not read."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

from pipeline.sources.item import MEDIA_SUFFIXES, is_system_file
from pipeline.sources.retrying_file import retry_call
from pipeline.sources.sidecars import SUFFIXES, TEXT
from pipeline.storage.listing import iter_files, list_folder
from pipeline.storage.urls import HTTP_SCHEMES, canonical, open_filesystem, scheme_of, suffix_of

MAX_FILES = 100_000
"""Number of files below the folder that are looked at."""
TABLE_SUFFIXES = ("csv", "tsv", "jsonl", "ndjson", "parquet", "json")
TEXT_FOLDERS = ("labels", "captions", "prompts", "texts", "txt", "label", "caption", "prompt", "text")
"""Names of folders beside the folder that are searched for text files."""


def caption_hint(url: str, num_media: int) -> str:
    """Tables and folders of text files below or beside a folder of ``num_media`` videos and images; empty without any."""
    if scheme_of(url) in HTTP_SCHEMES:
        return ""
    tables, texts = _below(url)
    for table in tables:
        return f"'{table}' lies beside the videos; if it holds captions, give it as --source"
    for folder, count in [*texts.items(), *_beside(url).items()]:
        how_many = "as many text files as there are videos" if count == num_media else f"{count} text files"
        return f"'{folder}/' holds {how_many}; put each beside its video, under the video's name"
    return ""


def _below(url: str) -> tuple[list[str], Counter[str]]:
    """Tables whose name or place suggests captions, and the number of text files by folder without videos."""
    fs, root = open_filesystem(url)
    tables: list[str] = []
    texts, media_folders, media_stems = Counter[str](), set[str](), set[str]()
    for path, _ in itertools.islice(iter_files(fs, root, partial(retry_call, url)), MAX_FILES):
        folder = path.rpartition("/")[0]
        suffix = suffix_of(path)
        if is_system_file(path):
            continue
        if suffix in MEDIA_SUFFIXES:
            media_folders.add(folder)
            media_stems.add(path.rpartition(".")[0])
        elif suffix in SUFFIXES[TEXT]:
            texts[folder] += 1
        elif suffix in TABLE_SUFFIXES:
            tables.append(path)
    place = canonical(url)
    apart = {f"{place}/{folder}".rstrip("/"): n for folder, n in texts.items() if folder not in media_folders}
    tables = [path for path in tables if path.rpartition(".")[0] not in media_stems]
    tables.sort(key=lambda path: (not path.rpartition("/")[2].startswith("metadata."), path))
    return [f"{place}/{path}" for path in tables], Counter(apart)


def _beside(url: str) -> Counter[str]:
    """The number of text files in folders with usual names that stand beside the folder."""
    fs, root = open_filesystem(url)
    parent, found = root.rstrip("/").rpartition("/")[0], Counter[str]()
    for name in TEXT_FOLDERS:
        listed = list_folder(fs, f"{parent}/{name}", "", "\U0010ffff", partial(retry_call, url))
        found[f"{canonical(url).rpartition('/')[0]}/{name}"] = sum(
            suffix_of(entry) in SUFFIXES[TEXT] for entry, _ in itertools.islice(listed, MAX_FILES)
        )
    return +found
